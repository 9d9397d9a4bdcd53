import { latencyOf, median, rounded } from "./figures.js";
import {
  atRate,
  clusterBody,
  onStack,
  type Bench,
  type BenchOptions,
  type BenchResult,
  type Scenario,
} from "./scenario.js";

/** Of the links between sites, milliseconds: much more than what a machine's noise adds. */
const rttMs = 20;

/** What a write costs more when it comes to another datacenter than the owner's. */
export const forwarded: Scenario = {
  name: "forwarded",
  what: `forwarded against local PUTs, in turns at 40 writes/s, with ${rttMs} ms between sites; the difference in round trips`,
  run: (options) => onStack(options, (bench) => measure(bench, options), { rttMs }),
};

async function measure(bench: Bench, { seconds, rate = 40, tell }: BenchOptions): Promise<BenchResult> {
  const [owner = "", other = ""] = bench.stack.dcs;
  const ids = bench.idsOf(owner, 200);
  const took = { local: [] as number[], forwarded: [] as number[] };
  const run = (length: number): Promise<void> =>
    atRate(rate, length, async (number) => {
      const way = number % 2 === 0 ? "local" : "forwarded";
      const id = ids[(number >> 1) % ids.length] ?? "";
      const answer = await bench.client.request(way === "local" ? owner : other, "PUT", `/v1/clusters/${id}`, {
        body: clusterBody(`${way}-${number}`),
      });
      if (answer.status !== 200 && answer.status !== 201) throw new Error(`a write was answered ${answer.status}`);
      took[way].push(answer.endedAt - answer.startedAt);
    });
  tell("warming up");
  await run(3);
  took.local = [];
  took.forwarded = [];
  tell(`${seconds} s`);
  await run(seconds);
  const [local, remote] = [latencyOf(took.local), latencyOf(took.forwarded)];
  const roundTripMs = await routeRtt(bench, owner, other);
  const more = (share: "p50" | "p99"): { ms: number; roundTrips: number; beyondOneMs: number } => {
    const ms = remote[share] - local[share];
    return { ms: rounded(ms), roundTrips: rounded(ms / roundTripMs), beyondOneMs: rounded(ms - roundTripMs) };
  };
  const figures = {
    roundTripMs: rounded(roundTripMs),
    local,
    forwarded: remote,
    difference: { p50: more("p50"), p99: more("p99") },
  };
  const row = (what: string, { p50, p99, max }: typeof local): (string | number)[] => [what, p50, p99, max];
  const { p50, p99 } = figures.difference;
  return {
    rows: [
      ["PUT", "p50 ms", "p99 ms", "max ms"],
      ["a round trip of NATS", figures.roundTripMs, "", ""],
      row("local", local),
      row("forwarded", remote),
      ["difference", p50.ms, p99.ms, ""],
      ["in round trips", p50.roundTrips, p99.roundTrips, ""],
      ["ms beyond one", p50.beyondOneMs, p99.beyondOneMs, ""],
    ],
    figures,
  };
}

/** Between the servers of two sites, milliseconds, as they measure it themselves: the links add a little to what they are set to. */
async function routeRtt({ stack }: Bench, from: string, to: string): Promise<number> {
  const answer = await fetch(`${stack.stack.site(from).nats.monitorUrl}/routez`);
  const { routes } = (await answer.json()) as { routes: { remote_name?: string; rtt?: string }[] };
  const found = routes.flatMap(({ remote_name: name, rtt = "" }) => {
    const ms = /^([\d.]+)ms$/.exec(rtt)?.[1];
    return name === to && ms !== undefined ? [Number(ms)] : [];
  });
  if (found.length === 0) throw new Error(`no route from ${from} to ${to} tells its round trip`);
  return median(found);
}
