import type { Command } from "commander";
import type { LocalStack } from "../../infra/local/stack.js";
import { Failure, UsageError } from "./failure.js";
import { common, verb, type Session } from "./session.js";

const onSites = {
  crash: "kill all processes of a site at once (SIGKILL)",
  pause: "stop all processes of a site (SIGSTOP)",
  resume: "let them go on (SIGCONT)",
  restart: "start what is dead of a site",
  promote: "kill a site's PostgreSQL; its standby takes its place (a stack started with --standby)",
  isolate: "cut a site off from all others",
} as const;

/** Faults of the local stack. Each returns when it is done. */
export function addSimulate(program: Command): void {
  const simulate = program.command("simulate").description("faults of the local stack");
  for (const [action, description] of Object.entries(onSites)) {
    common(simulate.command(`${action} <site>`).description(description), true).action(
      verb(async (session, _options, [site = ""]) => {
        const stack = session.requireStack();
        const { name } = stack.site(site);
        if (!session.dryRun) await run(session, stack, action as keyof typeof onSites, name);
        session.show(
          { action, site: name, ...(stack.isRunning() ? { pids: stack.pids(name) } : {}) },
          `${session.dryRun ? "would " : ""}${action} ${name}${session.dryRun ? "" : ": done"}`,
        );
        return 0;
      }),
    );
  }
  for (const action of ["cut", "heal"] as const) {
    const command = simulate
      .command(`${action} [site]`)
      .description(`${action} all links of a site, or one link (a stack started with --rtt)`);
    command.option("--link <a:b>", "the link between two sites");
    if (action === "cut") command.option("--one-way", "lose only what the first site sends");
    common(command, true).action(
      verb<{ link?: string; oneWay?: boolean }>(async (session, { link, oneWay }, [site]) => {
        const [a, b] = ends(site, link);
        const stack = session.requireStack();
        const what = b === undefined ? `all links of ${a}` : `the link ${a}:${b}`;
        if (stack.links === undefined) await stack.cut(a, b);
        const links = session.dryRun ? [] : await (action === "cut" ? stack.cut(a, b, oneWay) : stack.heal(a, b));
        session.show(
          { action, links },
          `${session.dryRun ? "would " : ""}${action} ${what}${session.dryRun ? "" : ": done"}`,
        );
        return 0;
      }),
    );
  }
}

async function run(session: Session, stack: LocalStack, action: keyof typeof onSites, site: string): Promise<void> {
  const alive = stack.site(site).processes().length > 0;
  if ((action === "pause" || action === "resume") && !alive)
    throw new Failure("not_running", `Nothing of ${site} runs.`, {
      wayOut: "Start it with `hothot simulate restart` or `hothot up`.",
    });
  if (action === "crash") await stack.crash(site);
  else if (action === "pause") stack.pause(site);
  else if (action === "resume") stack.resume(site);
  else if (action === "restart") await stack.restart(site, (text) => session.say(text));
  else if (action === "promote") await stack.promote(site);
  else await stack.cut(site);
}

function ends(site: string | undefined, link: string | undefined): [string, string?] {
  if ((site === undefined) === (link === undefined)) throw new UsageError("give either a site or --link a:b");
  if (site !== undefined) return [site];
  const [a, b, ...rest] = (link ?? "").split(":");
  if (a === undefined || b === undefined || a === "" || b === "" || a === b || rest.length > 0)
    throw new UsageError("--link: must be two sites with a colon between, such as east:west");
  return [a, b];
}
