import type { TestStack } from "../harness/stack.js";

/** Who is who in a case. */
export interface Roles {
  readonly stack: TestStack;
  /** Owns the shard and is to give it away. */
  readonly owner: string;
  readonly target: string;
  /** The datacenter that is neither. */
  readonly third: string;
  /** The site that leads the log of the shard's partition. */
  readonly leader: string;
  /** Waits until `dc` no longer takes `other` for alive. */
  readonly suspects: (dc: string, other: string) => Promise<void>;
  /** Waits until the owner has asked the log for the target's `open`. */
  readonly asked: () => Promise<void>;
  /** @throws AssertionError when the log has answered that */
  readonly unanswered: () => void;
  /** Milliseconds; for what has no sign that could be waited for. */
  readonly pause: (ms: number) => Promise<void>;
}

/** A planned move that is stopped at one step, and what goes wrong there. */
export interface SwitchoverCase {
  readonly name: string;
  /**
   * Where the move waits until the fault is there: at the owner before the shard is set `moving`; at the target before it takes what
   * is carried, the last step before the append, of a shard whose log the third datacenter leads; or at the target before it adopts
   * the `open`, which the log then holds.
   */
  readonly waitsAt: "owner" | "carry" | "target";
  readonly fault: (roles: Roles) => Promise<void>;
  /** After the move was let go on. */
  readonly then?: (roles: Roles) => Promise<void>;
  /** Datacenters that are dead when the fault is over. */
  readonly dead: (roles: Roles) => readonly string[];
  /** What must have come of it; `one`: any datacenter, but exactly one. */
  readonly expect: "stays" | "moved" | "one";
}

const kill = (pids: readonly number[], signal: NodeJS.Signals = "SIGKILL"): void => {
  for (const pid of pids) process.kill(pid, signal);
};
const nobody = (): string[] => [];

/** Every step before and after the point of no return, with each part that can fail there (DESIGN.md, section 5). */
export const switchoverCases: readonly SwitchoverCase[] = [
  {
    name: "the owner is killed before the shard is moving",
    waitsAt: "owner",
    fault: ({ stack, owner }) => stack.simulate("crash", owner),
    dead: ({ owner }) => [owner],
    expect: "one",
  },
  {
    name: "the target stands still before the append",
    waitsAt: "owner",
    fault: async ({ stack, owner, target, suspects }) => {
      await stack.simulate("pause", target);
      await suspects(owner, target);
    },
    then: async ({ stack, target, pause }) => {
      await pause(500);
      await stack.simulate("resume", target);
    },
    dead: nobody,
    expect: "one",
  },
  {
    name: "the target is killed before the append",
    waitsAt: "owner",
    fault: async ({ stack, owner, target, suspects }) => {
      await stack.simulate("crash", target);
      await suspects(owner, target);
    },
    dead: ({ target }) => [target],
    expect: "stays",
  },
  {
    name: "the log's leader is killed before the append",
    waitsAt: "owner",
    fault: async ({ stack, leader }) => kill(stack.pids(leader).nats),
    dead: nobody,
    expect: "one",
  },
  {
    name: "the log's leader stands still, and the append is stored late or never",
    waitsAt: "owner",
    fault: async ({ stack, leader }) => kill(stack.pids(leader).nats, "SIGSTOP"),
    then: async ({ stack, leader, pause }) => {
      await pause(6_500);
      kill(stack.pids(leader).nats, "SIGCONT");
    },
    dead: nobody,
    expect: "one",
  },
  {
    name: "the log's leader stands still, and the owner is killed with its append unanswered",
    waitsAt: "owner",
    fault: async ({ stack, leader }) => kill(stack.pids(leader).nats, "SIGSTOP"),
    then: async ({ stack, owner, leader, pause }) => {
      await pause(800);
      await stack.simulate("crash", owner);
      if (leader !== owner) kill(stack.pids(leader).nats, "SIGCONT");
    },
    dead: ({ owner }) => [owner],
    expect: "one",
  },
  {
    name: "the append is stored late, when its tries have had no answer: the log's leader stands still for a second",
    waitsAt: "carry",
    fault: async ({ stack, leader }) => kill(stack.pids(leader).nats, "SIGSTOP"),
    then: async ({ stack, leader, asked, unanswered, pause }) => {
      await asked();
      // Several tries, and less than an election takes.
      await pause(1_000);
      unanswered();
      kill(stack.pids(leader).nats, "SIGCONT");
    },
    dead: nobody,
    expect: "moved",
  },
  {
    name: "the append is lost with the log's leader, which had not stored it",
    waitsAt: "carry",
    fault: async ({ stack, leader }) => kill(stack.pids(leader).nats, "SIGSTOP"),
    then: async ({ stack, leader, asked, unanswered, pause }) => {
      await asked();
      await pause(300);
      unanswered();
      kill(stack.pids(leader).nats);
    },
    dead: nobody,
    expect: "one",
  },
  {
    name: "nothing that the others send reaches the owner, from before the shard is moving",
    waitsAt: "owner",
    fault: async ({ stack, owner, target, third }) => {
      for (const other of [target, third]) await stack.simulate("cut", `${other}:${owner}`, true);
    },
    then: async ({ stack, owner, pause }) => {
      await pause(4_000);
      await stack.simulate("heal", owner);
    },
    dead: nobody,
    expect: "one",
  },
  {
    name: "nothing that the owner sends reaches the others, from before the shard is moving",
    waitsAt: "owner",
    fault: ({ stack, owner }) => stack.simulate("cut", owner, true),
    then: async ({ stack, owner, pause }) => {
      await pause(4_000);
      await stack.simulate("heal", owner);
    },
    dead: nobody,
    expect: "one",
  },
  {
    name: "the owner stands still with the shard about to move, is taken over, and wakes",
    waitsAt: "owner",
    fault: ({ stack, owner }) => stack.simulate("pause", owner),
    then: async ({ stack, owner, pause }) => {
      await pause(4_000);
      await stack.simulate("resume", owner);
    },
    dead: nobody,
    expect: "one",
  },
  {
    name: "the owner is killed after the append",
    waitsAt: "target",
    fault: ({ stack, owner }) => stack.simulate("crash", owner),
    dead: ({ owner }) => [owner],
    expect: "moved",
  },
  {
    name: "the target is killed after the append",
    waitsAt: "target",
    fault: ({ stack, target }) => stack.simulate("crash", target),
    dead: ({ target }) => [target],
    expect: "one",
  },
  {
    name: "the target stands still after the append, is taken over, and wakes",
    waitsAt: "target",
    fault: ({ stack, target }) => stack.simulate("pause", target),
    then: async ({ stack, target, pause }) => {
      await pause(4_000);
      await stack.simulate("resume", target);
    },
    dead: nobody,
    expect: "one",
  },
  {
    name: "the log's leader is killed after the append",
    waitsAt: "target",
    fault: async ({ stack, leader }) => kill(stack.pids(leader).nats),
    dead: nobody,
    expect: "moved",
  },
];
