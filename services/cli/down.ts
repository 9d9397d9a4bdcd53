import type { Command } from "commander";
import { endProgress } from "./output.js";
import { common, verb } from "./session.js";

export function addDown(program: Command): void {
  const command = program.command("down").description("stop the local stack; its data stays");
  common(command, true).action(
    verb(async (session) => {
      const stack = session.requireStack();
      const processes = stack.sites.reduce((sum, site) => sum + site.processes().length, 0);
      if (session.dryRun)
        session.show({ dir: stack.dir, processes }, `would stop ${processes} processes of ${stack.dir}`);
      else {
        session.say("stopping ...");
        await stack.down((text) => session.say(text));
        endProgress();
        session.show({ stopped: processes }, processes === 0 ? "nothing was running" : "stopped");
      }
      return 0;
    }),
  );
}
