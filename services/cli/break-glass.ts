import { LocalStack } from "../../infra/local/stack.js";
import { Failure } from "./failure.js";
import type { Session } from "./session.js";

const works = (site: LocalStack["sites"][number]): boolean =>
  site.nats.process() !== undefined && site.nodes.some((node) => node.process() !== undefined);

/** No majority of the stack's sites works, so that neither votes nor the log can be had. */
export function majorityIsOff(stack: LocalStack): boolean {
  const { sites } = stack;
  return 2 * sites.filter(works).length <= sites.length;
}

/**
 * Takes over what the log can't give: the sites that work begin a new log with the copy of one of them.
 * @returns the exit code
 */
export async function breakGlass(
  session: Session,
  stack: LocalStack,
  options: { readonly dc: string; readonly to?: string },
): Promise<number> {
  const { sites, file } = stack;
  if (!file.initialised && file.primary !== undefined && file.left?.some((site) => site.name === options.dc) === true)
    return goOn(session, stack, file.primary);
  stack.site(options.dc);
  const stay = sites.filter(works);
  const primary = options.to ?? stay.find((site) => site.entry.kind === "datacenter")?.name;
  if (primary === undefined || !stay.some((site) => site.name === primary && site.entry.kind === "datacenter"))
    throw new Failure("not_available", `${primary ?? "No datacenter"} works, so there is no copy to go on with.`, {
      wayOut: "Start one again (`hothot simulate restart`).",
    });
  const left = sites.filter((site) => !stay.includes(site)).map((site) => site.name);
  const generation = (stack.file.generation ?? 1) + 1;
  const plan: Plan = { action: "new_generation", generation, primary, sites: stay.map((site) => site.name), left };
  const consequence = `log generation ${generation} begins with the copy of ${primary}, which then owns every shard; ${left.join(" and ")} must stay off: what was acknowledged there and is not in this copy becomes divergent when it comes back (\`hothot dc add\`)`;
  if (session.dryRun) {
    session.show({ ...plan, consequence }, consequence);
    return 0;
  }
  session.say(consequence);
  await stack.beginGeneration(primary, plan.sites, (text) => session.say(text));
  return done(session, plan);
}

interface Plan {
  readonly action: "new_generation";
  readonly generation: number;
  readonly primary: string;
  readonly sites: readonly string[];
  readonly left: readonly string[];
}

/** The generation was begun before, and that was interrupted. */
async function goOn(session: Session, stack: LocalStack, primary: string): Promise<number> {
  const { generation = 1, sites, left = [] } = stack.file;
  const names = (entries: readonly { readonly name: string }[]): string[] => entries.map((entry) => entry.name);
  const plan: Plan = { action: "new_generation", generation, primary, sites: names(sites), left: names(left) };
  if (session.dryRun) {
    const consequence = `log generation ${generation} was begun with the copy of ${primary}, and is brought to its end`;
    session.show({ ...plan, consequence }, consequence);
    return 0;
  }
  await LocalStack.up(stack.dir, {}, (text) => session.say(text));
  return done(session, plan);
}

function done(session: Session, plan: Plan): number {
  const { primary, generation, left } = plan;
  session.show(plan, `${primary} owns every shard in log generation ${generation}; left: ${left.join(", ")}`);
  return 0;
}
