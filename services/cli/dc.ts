import type { Command } from "commander";
import { LocalStack } from "../../infra/local/stack.js";
import { pause } from "../../infra/local/wait.js";
import { Failure } from "./failure.js";
import { runMove } from "./moves.js";
import { common, verb, type Session } from "./session.js";

interface DcOptions {
  readonly rebalance?: boolean;
}

/** Milliseconds that the log's replicas may take to move away from a datacenter that leaves. */
const leaveMs = 600_000;
const loadMs = 3_600_000;
const seenMs = 30_000;

/** Datacenters that come and go while the others serve. */
export function addDc(program: Command): void {
  const dc = program.command("dc").description("add or remove a datacenter while the others serve");
  common(
    dc
      .command("add <name>")
      .description("a datacenter joins, loads its copy, and then takes its share of the shards")
      .option("--no-rebalance", "leave the shards where they are"),
    true,
  ).action(verb<DcOptions>((session, options, [name = ""]) => add(session, name, options.rebalance !== false)));
  common(
    dc.command("remove <name>").description("its shards move away, then it leaves; its name can't be used again"),
    true,
  ).action(verb((session, _options, [name = ""]) => remove(session, name)));
}

async function add(session: Session, name: string, rebalance: boolean): Promise<number> {
  const { stack } = session;
  if (session.dryRun) {
    session.show({ action: "add", dc: name, site: stack?.nextSite(name), rebalance });
    return 0;
  }
  if (stack !== undefined && stack.file.sites.length < 2) return addToOne(session, stack, name, rebalance);
  if (stack !== undefined) await stack.startSite(name, (text) => session.say(text));
  const members = await join(session, name);
  if (stack === undefined) {
    session.show(
      members,
      `${name} is a member now: start its processes (\`hothot serve\`), then \`hothot rebalance\` gives it shards`,
    );
    return 0;
  }
  session.say(`${name} loads its copy ...`);
  await stack.startSiteNodes(name, loadMs);
  if (rebalance) {
    await seenServing(session, name);
    const code = await runMove(session, "/v1/rebalances", {}, loadMs);
    if (code !== 0) return code;
  }
  session.show(members, `${name} serves at ${LocalStack.open(session.dir).url(name)}`);
  return 0;
}

/**
 * The NATS server of a lone site is no cluster, so nobody can join it while it runs: the log begins anew with both sites, and
 * the one that was there stops for some seconds.
 */
async function addToOne(session: Session, stack: LocalStack, name: string, rebalance: boolean): Promise<number> {
  const [alone] = stack.datacenters;
  if (alone === undefined) throw new Failure("not_available", "There is no datacenter to copy from.");
  await stack.beginGeneration(alone.name, [alone.name, name], (text) => session.say(text));
  if (rebalance) {
    await seenServing(session, name);
    const code = await runMove(session, "/v1/rebalances", {}, loadMs);
    if (code !== 0) return code;
  }
  session.show(
    { datacenters: [alone.name, name], generation: stack.file.generation },
    `${name} serves at ${stack.url(name)}`,
  );
  return 0;
}

/** The datacenter that plans the rebalance has to know that the new one can take shards. */
async function seenServing(session: Session, name: string): Promise<void> {
  const deadline = performance.now() + seenMs;
  while (performance.now() < deadline) {
    const { datacenters } = await session.client.get<{ datacenters: { name: string; state: string }[] }>(
      "/v1/topology",
    );
    if (datacenters.some((each) => each.name === name && each.state === "serving")) return;
    await pause(100);
  }
}

/** A server that may not become a member has nothing to do in the cluster. */
async function join(session: Session, name: string): Promise<unknown> {
  try {
    return (await session.client.request("POST", "/v1/datacenters", { body: { name }, timeoutMs: 40_000 })).body;
  } catch (error) {
    if (error instanceof Failure && error.code === "invalid_request") await session.stack?.endSite(name);
    throw error;
  }
}

async function remove(session: Session, name: string): Promise<number> {
  const { stack } = session;
  stack?.site(name);
  if (session.dryRun) {
    session.show({ action: "remove", dc: name });
    return 0;
  }
  const others = stack?.datacenters.filter((site) => site.name !== name) ?? [];
  if (stack !== undefined && others.length === 0)
    throw new Failure("bad_option", "The last datacenter can't be removed.", {
      wayOut: "`hothot down` stops a stack.",
    });
  const [other] = others;
  const client = stack === undefined || other === undefined ? session.client : session.client.at(stack.url(other.name));
  const { datacenters } = await client.get<{ datacenters: { name: string; shardsOwned: number }[] }>("/v1/topology");
  const owned = datacenters.find((each) => each.name === name)?.shardsOwned ?? 0;
  if (owned > 0) {
    const code = await runMove(session, "/v1/drains", { dc: name }, leaveMs, client);
    if (code !== 0) return code;
  }
  session.say(`${name} leaves ...`);
  const deadline = performance.now() + leaveMs;
  for (;;) {
    try {
      const { body } = await client.request("DELETE", `/v1/datacenters/${name}`, { timeoutMs: 40_000 });
      await stack?.endSite(name);
      session.show(body, `${name} has left`);
      return 0;
    } catch (error) {
      const again =
        error instanceof Failure && ["no_majority", "deadline_exceeded", "unreachable"].includes(error.code);
      if (!again || performance.now() > deadline) throw error;
      await pause(500);
    }
  }
}
