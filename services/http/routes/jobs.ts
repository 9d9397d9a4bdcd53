import type { JobQuery } from "../../api.js";
import { clusterId, idParam, jobQuery, madeId, nothing, startOperation } from "../schemas.js";
import { job, listOf, task } from "../shapes.js";
import { route, type Backend, type Route } from "../types.js";
import { writeProblems } from "./clusters.js";
import { pageOf } from "./page.js";

const id = idParam(madeId);

export function jobRoutes({ datacenter }: Backend): Route[] {
  const change = (verb: "cancel" | "retry" | "pause" | "resume", summary: string): Route =>
    route({
      method: "POST",
      path: `/v1/jobs/{id}/${verb}`,
      summary,
      lane: "work",
      write: true,
      params: id,
      body: nothing,
      bodyOptional: true,
      // 202 where another attempt begins.
      answers: verb === "retry" ? { 202: job } : verb === "resume" ? { 200: job, 202: job } : { 200: job },
      problems: ["not_found", "invalid_transition", "job_in_progress", ...writeProblems],
      handle: ({ context, path }) => datacenter.execute(context, { type: `job.${verb}`, jobId: path.id }),
    });
  return [
    route({
      method: "POST",
      path: "/v1/clusters/{id}/operations",
      summary: "Start an operation as a job",
      lane: "work",
      write: true,
      params: idParam(clusterId),
      body: startOperation,
      answers: { 202: job },
      problems: ["not_found", "job_in_progress", "invalid_transition", ...writeProblems],
      async handle({ context, path, body }) {
        const reply = await datacenter.execute(context, {
          type: "job.start",
          clusterId: path.id,
          operation: body.type,
          input: body.input ?? {},
          notBefore: body.notBefore ?? null,
        });
        const made = (reply.body as { readonly id?: unknown } | undefined)?.id;
        return typeof made === "string" ? { ...reply, location: `/v1/jobs/${made}` } : reply;
      },
    }),
    route({
      method: "GET",
      path: "/v1/jobs/{id}",
      summary: "A job, as this datacenter has it",
      lane: "work",
      params: id,
      answers: { 200: job },
      problems: ["not_found", "position_lost", "deadline_exceeded"],
      handle: ({ context, path }) => datacenter.getJob(context, path.id),
    }),
    route({
      method: "GET",
      path: "/v1/jobs",
      summary: "Jobs, as this datacenter has them",
      lane: "work",
      query: jobQuery,
      answers: { 200: listOf(job) },
      problems: ["deadline_exceeded", "position_lost"],
      handle({ context, query }) {
        const { cluster, status } = query;
        const filter: JobQuery = {
          ...pageOf(query),
          ...(cluster === undefined ? undefined : { cluster }),
          ...(status === undefined ? undefined : { status }),
        };
        return datacenter.listJobs(context, filter);
      },
    }),
    route({
      method: "GET",
      path: "/v1/jobs/{id}/tasks",
      summary: "A job's tasks with their output, from the owner",
      lane: "work",
      params: id,
      answers: { 200: listOf(task) },
      problems: ["not_found", "no_lease", "owner_unreachable", "shard_moving", "deadline_exceeded", "position_lost"],
      handle: ({ context, path }) => datacenter.execute(context, { type: "job.tasks", jobId: path.id }),
    }),
    change("cancel", "Cancel a job"),
    change("retry", "Run a failed or cancelled job again"),
    change("pause", "Give out no further tasks of a job"),
    change("resume", "Go on with a paused job"),
  ];
}
