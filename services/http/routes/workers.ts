import { heartbeatTask, finishTask, idParam, madeId, nothing, putWorker, takeTasks, workerId } from "../schemas.js";
import { taken, taskLease, worker } from "../shapes.js";
import { route, type Backend, type Route } from "../types.js";
import { writeProblems } from "./clusters.js";

/** Workers, and the tasks that they take, hold and finish. */
export function workerRoutes({ datacenter, time }: Backend): Route[] {
  return [
    route({
      method: "PUT",
      path: "/v1/workers/{id}",
      summary: "Register a worker, or change it",
      lane: "work",
      write: true,
      params: idParam(workerId),
      body: putWorker,
      bodyOptional: true,
      answers: { 200: worker },
      problems: [...writeProblems],
      handle: ({ context, path, body }) =>
        datacenter.execute(context, {
          type: "worker.put",
          workerId: path.id,
          capacity: body.capacity,
          labels: body.labels,
        }),
    }),
    route({
      method: "POST",
      path: "/v1/workers/{id}/heartbeat",
      summary: "A worker is alive",
      lane: "work",
      params: idParam(workerId),
      body: nothing,
      bodyOptional: true,
      answers: { 200: worker },
      problems: ["not_found", "deadline_exceeded"],
      handle: ({ context, path }) => datacenter.workerHeartbeat(context, path.id),
    }),
    route({
      method: "POST",
      path: "/v1/tasks/take",
      summary: "Take tasks of jobs that this datacenter owns; waits until there is one",
      lane: "poll",
      body: takeTasks,
      timeoutMs: (body, defaultMs) => defaultMs + (body as { readonly waitMs: number }).waitMs,
      answers: { 200: taken },
      problems: ["not_found", "no_lease", "deadline_exceeded"],
      handle({ context, body, signal }) {
        const { names, labels } = body;
        const left = Math.floor(context.deadline - time.monotonic());
        return datacenter.takeTasks(
          context,
          {
            workerId: body.workerId,
            waitMs: Math.max(0, Math.min(body.waitMs, left)),
            max: body.max,
            ...(names === undefined ? undefined : { names }),
            ...(labels === undefined ? undefined : { labels }),
          },
          signal,
        );
      },
    }),
    route({
      method: "POST",
      path: "/v1/tasks/{id}/heartbeat",
      summary: "A task is still worked on: extends its lease",
      lane: "work",
      params: idParam(madeId),
      body: heartbeatTask,
      answers: { 200: taskLease },
      problems: ["stale_token", ...writeProblems],
      handle: ({ context, path, body }) =>
        datacenter.execute(context, { type: "task.heartbeat", taskId: path.id, ...body }),
    }),
    route({
      method: "POST",
      path: "/v1/tasks/{id}/finish",
      summary: "A task has ended; may be repeated",
      lane: "work",
      write: true,
      params: idParam(madeId),
      body: finishTask,
      answers: { 200: taskLease },
      problems: ["stale_token", ...writeProblems],
      handle({ context, path, body }) {
        const { token, workerId: by, try: number, status, result, stdout, stderr } = body;
        return datacenter.execute(context, {
          type: "task.finish",
          taskId: path.id,
          token,
          workerId: by,
          status,
          ...(number === undefined ? undefined : { try: number }),
          ...(result === undefined ? undefined : { result }),
          ...(stdout === undefined ? undefined : { stdout }),
          ...(stderr === undefined ? undefined : { stderr }),
        });
      },
    }),
  ];
}
