/** The face of the writes that jobs are made of. */
export { JobOperations, shardOfJob, type StartRequest } from "./job-operations.js";
export { TaskOperations, type FinishRequest, type LeaseAnswer } from "./task-operations.js";
export { deleteWorker, heartbeatWorker, putWorker, type Registration } from "./worker-operations.js";
export { defaultJobSettings, type JobContext, type JobSettings } from "./job-context.js";
export { JobEvents, type JobListener, type OfferedTask } from "./job-events.js";
export { jobView, takenTask, taskView, workerView, type TakenTask } from "./views.js";
