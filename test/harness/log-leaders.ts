import type { TestStack } from "./stack.js";

interface Streams {
  readonly account_details?: readonly {
    readonly stream_detail?: readonly { readonly name: string; readonly cluster?: { readonly leader?: string } }[];
  }[];
}

/** Which site leads the log of each partition, as the servers' monitoring says; partitions without a leader are left out. */
export async function logLeaders(stack: TestStack): Promise<Map<number, string>> {
  const leaders = new Map<number, string>();
  const sites = stack.stack.sites.map(({ name }) => name);
  for (const at of sites) {
    const url = `${stack.stack.site(at).nats.monitorUrl}/jsz?streams=true`;
    const answer = await fetch(url, { signal: AbortSignal.timeout(2_000) })
      .then((response) => response.json() as Promise<Streams>)
      .catch((): Streams => ({}));
    for (const { name, cluster } of (answer.account_details ?? []).flatMap((account) => account.stream_detail ?? [])) {
      const partition = /_p(\d+)$/.exec(name)?.[1];
      const leader = sites.find((site) => cluster?.leader?.split(".")[0] === site);
      // Only the leader itself is sure of it.
      if (partition !== undefined && leader === at) leaders.set(Number(partition), leader);
    }
  }
  return leaders;
}
