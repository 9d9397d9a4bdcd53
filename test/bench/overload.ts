import { latencyOf } from "./figures.js";
import { clusterBody, onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";
import { hammer, putBytes } from "./wire.js";

/** Connections to each datacenter, each with one write under way: what a process can take, and far too many. */
const crowds = [32, 1_000];

/** What more clients than a machine can serve cost: answers, leases, and how quickly probes are answered. */
export const overload: Scenario = {
  name: "overload",
  what: `writes over ${crowds.join(" and ")} connections to every datacenter at once, as many as it takes: writes/s, refusals, lost leases, takeovers`,
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { seconds, tell }: BenchOptions): Promise<BenchResult> {
  const { stack, client } = bench;
  const figures: Record<string, Record<string, number>> = {};
  for (const connections of crowds) {
    tell(`${connections} connections to each datacenter for ${seconds} s`);
    const leasesBefore = lostLeases(bench);
    let written = 0;
    let refused = 0;
    let failed = 0;
    const probes: number[] = [];
    const probing = setInterval(() => {
      void client.request(stack.dcs[0] ?? "", "GET", "/livez").then(
        ({ startedAt, endedAt }) => probes.push(endedAt - startedAt),
        () => failed++,
      );
    }, 100);
    try {
      await Promise.all(
        stack.dcs.map((dc) => {
          const url = new URL(stack.url(dc));
          const put = (number: number): Buffer => {
            const id = `crowd-${number % 3000}`;
            return putBytes(url, `/v1/clusters/${id}`, clusterBody(id));
          };
          return hammer(url, put, connections, seconds, (status) => {
            if (status >= 200 && status < 300) written++;
            else if (status === 503) refused++;
            else failed++;
          });
        }),
      );
    } finally {
      clearInterval(probing);
    }
    figures[`${connections}`] = {
      writesPerSecond: Math.round(written / seconds),
      refusedPerSecond: Math.round(refused / seconds),
      failed,
      livezP99Ms: latencyOf(probes).p99,
      leasesLost: lostLeases(bench) - leasesBefore,
      takeovers: await takeovers(bench),
    };
  }
  const names = Object.keys(Object.values(figures)[0] ?? {});
  return {
    rows: [
      ["connections to each", ...crowds],
      ...names.map((name) => [name, ...Object.values(figures).map((each) => each[name] ?? NaN)]),
    ],
    figures,
  };
}

const lostLeases = ({ stack }: Bench): number =>
  stack.dcs.reduce((sum, dc) => sum + stack.logs(dc).split('"message":"lease lost"').length - 1, 0);

async function takeovers({ stack, client }: Bench): Promise<number> {
  const { text } = await client.request(stack.dcs[0] ?? "", "GET", "/v1/history?limit=1000");
  return (JSON.parse(text) as { items: { kind: string }[] }).items.filter(({ kind }) => kind === "takeover").length;
}
