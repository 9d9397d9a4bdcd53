/** The parts of a datacenter that can be hurt, as test/harness/stack.ts gives them. */
export interface HurtableStack {
  readonly dcs: readonly string[];
  url(dc: string): string;
  simulate(action: "crash" | "pause" | "resume" | "restart", site: string): Promise<unknown>;
  pids(dc: string): {
    readonly node: readonly number[];
    readonly postgres: readonly number[];
    readonly nats: readonly number[];
  };
}

/** A kind of harm that a datacenter can come to, and how it is mended. */
export interface Fault {
  readonly name: string;
  readonly what: string;
  hurt(stack: HurtableStack, dc: string): Promise<unknown>;
  heal(stack: HurtableStack, dc: string): Promise<unknown>;
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

function killOnly(part: "node" | "postgres" | "nats", what: string): Fault {
  return {
    name: `kill-${part}`,
    what: `kill -9 of ${what} of one datacenter, which is then started again`,
    hurt: async (stack, dc) => {
      for (const pid of stack.pids(dc)[part]) process.kill(pid, "SIGKILL");
    },
    heal: (stack, dc) => stack.simulate("restart", dc),
  };
}

function stopFor(seconds: number): Fault {
  return {
    name: `pause-${seconds}`,
    what: `SIGSTOP of every process of one datacenter for ${seconds} s, then SIGCONT`,
    hurt: async (stack, dc) => {
      await stack.simulate("pause", dc);
      await pause(seconds * 1000);
    },
    heal: (stack, dc) => stack.simulate("resume", dc),
  };
}

/** By the names of their scenarios. */
export const faults: readonly Fault[] = [
  {
    name: "kill-rounds",
    what: "kill -9 of every process of one datacenter, which is then started again",
    hurt: (stack, dc) => stack.simulate("crash", dc),
    heal: (stack, dc) => stack.simulate("restart", dc),
  },
  stopFor(1),
  stopFor(3),
  stopFor(10),
  killOnly("node", "the hothot processes"),
  killOnly("postgres", "PostgreSQL"),
  killOnly("nats", "the NATS server"),
];
