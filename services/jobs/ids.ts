import { epoch, shardId, type Epoch, type ShardId } from "../../shards/ids.js";

/**
 * Ids carry what a request needs to find its owner and to be fenced, without a look-up:
 * a job's its shard (`j<shard>-<random>`), a task's its job and attempt (`<job id>.<attempt>.<number>`),
 * and a task's token what makes an attempt the only one of its kind (`<shard>.<epoch it began in>.<attempt>`).
 */
export interface TaskIdParts {
  readonly jobId: string;
  readonly shard: ShardId;
  readonly attempt: number;
  /** From 1 within the attempt. */
  readonly number: number;
}

export interface Token {
  readonly shard: ShardId;
  readonly epoch: Epoch;
  readonly attempt: number;
}

const whole = "(0|[1-9][0-9]{0,15})";
const jobPattern = new RegExp(`^j(0|[1-9][0-9]{0,5})-[0-9a-z]{8,32}$`);
const taskPattern = new RegExp(`^(j[0-9]{1,6}-[0-9a-z]{8,32})\\.${whole}\\.${whole}$`);
const tokenPattern = new RegExp(`^(0|[1-9][0-9]{0,5})\\.${whole}\\.${whole}$`);

export const jobIdOf = (shard: ShardId, random: string): string => `j${shard}-${random}`;
export const taskIdOf = (jobId: string, attempt: number, number: number): string => `${jobId}.${attempt}.${number}`;
export const tokenOf = (token: Token): string => `${token.shard}.${token.epoch}.${token.attempt}`;
/** For the systems behind the handlers: grows with each attempt, epoch first. */
export const fenceOf = (token: Pick<Token, "epoch" | "attempt">): string => `${token.epoch}.${token.attempt}`;

/** The shard of a job id; undefined for anything else. The caller checks that the group has that shard. */
export function parseJobId(text: string): ShardId | undefined {
  const match = jobPattern.exec(text);
  return match === null ? undefined : shardId(Number(match[1]));
}

export function parseTaskId(text: string): TaskIdParts | undefined {
  const match = taskPattern.exec(text);
  if (match === null) return undefined;
  const [, jobId = "", attempt, number] = match;
  const shard = parseJobId(jobId);
  if (shard === undefined || !safe(attempt) || !safe(number)) return undefined;
  if (Number(attempt) < 1 || Number(number) < 1) return undefined;
  return { jobId, shard, attempt: Number(attempt), number: Number(number) };
}

export function parseToken(text: string): Token | undefined {
  const match = tokenPattern.exec(text);
  if (match === null) return undefined;
  const [, shard, began, attempt] = match;
  if (!safe(began) || !safe(attempt)) return undefined;
  return { shard: shardId(Number(shard)), epoch: epoch(Number(began)), attempt: Number(attempt) };
}

const safe = (digits: string | undefined): boolean => Number.isSafeInteger(Number(digits));
