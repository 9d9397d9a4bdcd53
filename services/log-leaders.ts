import type { LogStreams } from "../infra/nats/log-streams.js";
import type { LogLeaders } from "../shards/ownership-log.js";

const stateMs = 1_000;
const handOverMs = 2_000;

/** Who leads the partitions' streams, as JetStream says. */
export const logLeaders = (streams: LogStreams): LogLeaders => ({
  leader: async (partition) => {
    const found = await streams.state(partition, stateMs);
    return found === undefined
      ? undefined
      : {
          leader: found.leader,
          replicas: [
            ...(found.leader === undefined ? [] : [found.leader]),
            ...found.replicas.filter((r) => !r.offline && r.current).map((r) => r.name),
          ],
        };
  },
  handOver: (partition, to) => streams.stepDown(partition, to, handOverMs),
});
