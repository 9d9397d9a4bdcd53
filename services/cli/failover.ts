import type { Command } from "commander";
import { common, verb } from "./session.js";

export function addFailover(program: Command): void {
  const failover = program.command("failover").description("automatic takeovers");
  for (const [name, paused] of [
    ["pause", true],
    ["resume", false],
  ] as const) {
    common(failover.command(name).description(`${name} automatic takeovers`), true).action(
      verb(async (session) => {
        const answer = await session.act("PUT", "/v1/failover", { body: { paused } });
        if (!session.dryRun)
          session.show(answer ?? { paused }, paused ? "automatic takeovers are paused" : "automatic takeovers are on");
        return 0;
      }),
    );
  }
}
