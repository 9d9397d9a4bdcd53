import type * as Otel from "@opentelemetry/api";
import type { ReadableSpan, SpanExporter } from "@opentelemetry/sdk-trace-base";
import { within, type Time } from "./clock.js";
import type { Logger } from "./logger.js";

export type Attributes = Readonly<Record<string, string | number | boolean>>;
/** As OpenTelemetry has them. */
export type SpanKind = "internal" | "server" | "client" | "producer" | "consumer";

/** One step of a request. */
export interface Span {
  /** W3C trace context for whatever follows from this step: the traceparent and, behind a space, the tracestate if there is one. */
  readonly traceparent: string;
  /** `fault`: a code that says why the step failed; never a message, which may tell too much. */
  end(attributes?: Attributes, fault?: string): void;
}

/**
 * Traces of requests, for an OpenTelemetry collector. `parent` is a W3C trace context as `Span` has it; whether a trace is kept follows from
 * its flags. Nothing here throws, or waits for the collector.
 */
export interface Tracing {
  /** Without a valid parent a trace begins. */
  begin(name: string, kind: SpanKind, parent: string | null | undefined, attributes?: Attributes): Span;
  /** A step that has just ended and took `ms`; none of a trace's own, so nothing without a parent that is kept. */
  record(
    name: string,
    kind: SpanKind,
    parent: string | null | undefined,
    ms: number,
    attributes: Attributes,
    fault?: string,
  ): void;
  /** Sends what is left, as far as a short time allows. */
  close(): Promise<void>;
}

export interface TracingOptions {
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** What the process is, beside what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say. */
  readonly resource: Attributes;
  readonly time: Time;
  readonly log: Logger;
}

const closeMs = 2_000;
/** Between two lines in the log on a collector that can't be reached. */
const complainMs = 60_000;
const kinds: Readonly<Record<SpanKind, number>> = { internal: 0, server: 1, client: 2, producer: 3, consumer: 4 };
const failed = 2;

/** Whether an exporter is configured, by the variables that every OpenTelemetry SDK reads. */
export function wantsTracing(environment: TracingOptions["environment"]): boolean {
  const { OTEL_SDK_DISABLED: disabled, OTEL_TRACES_EXPORTER: exporter = "" } = environment;
  const endpoint = environment["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] ?? environment["OTEL_EXPORTER_OTLP_ENDPOINT"];
  return disabled?.toLowerCase() !== "true" && (exporter === "" || exporter === "otlp") && (endpoint ?? "") !== "";
}

/** Undefined where no exporter is configured: nothing of OpenTelemetry is loaded then. Never throws. */
export async function openTracing(options: TracingOptions): Promise<Tracing | undefined> {
  const log = options.log.with({ component: "tracing" });
  if (!wantsTracing(options.environment)) return undefined;
  try {
    const [api, sdk, otlp, resources] = await Promise.all([
      import("@opentelemetry/api"),
      import("@opentelemetry/sdk-trace-base"),
      import("@opentelemetry/exporter-trace-otlp-http"),
      import("@opentelemetry/resources"),
    ]);
    const resource = resources
      .resourceFromAttributes({ "service.name": "hothot", ...options.resource })
      .merge(resources.detectResources({ detectors: [resources.envDetector] }));
    const exporter = complaining(new otlp.OTLPTraceExporter(), options.time, log);
    // Bounded, and spans beyond the bound are dropped: a slow collector costs some memory and nothing else.
    const provider = new sdk.BasicTracerProvider({ resource, spanProcessors: [new sdk.BatchSpanProcessor(exporter)] });
    log.info("requests are traced");
    return new OtelTracing(api, provider.getTracer("hothot"), options.time, () => provider.shutdown());
  } catch (error) {
    log.warn("requests can't be traced", { error });
    return undefined;
  }
}

class OtelTracing implements Tracing {
  constructor(
    private readonly api: typeof Otel,
    private readonly tracer: Otel.Tracer,
    private readonly time: Time,
    private readonly shutdown: () => Promise<void>,
  ) {}

  begin(name: string, kind: SpanKind, parent: string | null | undefined, attributes?: Attributes): Span {
    const span = this.tracer.startSpan(
      name,
      { kind: kinds[kind], ...(attributes === undefined ? {} : { attributes: attributes }) },
      this.#context(parent) ?? this.api.ROOT_CONTEXT,
    );
    const { traceId, spanId, traceFlags, traceState } = span.spanContext();
    const state = traceState?.serialize() ?? "";
    return {
      traceparent: `00-${traceId}-${spanId}-${(traceFlags & 1) === 1 ? "01" : "00"}${state === "" ? "" : ` ${state}`}`,
      end: (more, fault) => {
        if (more !== undefined) span.setAttributes(more);
        if (fault !== undefined) span.setStatus({ code: failed, message: fault });
        span.end();
      },
    };
  }

  record(
    name: string,
    kind: SpanKind,
    parent: string | null | undefined,
    ms: number,
    attributes: Attributes,
    fault?: string,
  ): void {
    if (parent == null || !isSampled(parent)) return;
    const context = this.#context(parent);
    if (context === undefined) return;
    const endTime = this.time.wall();
    const span = this.tracer.startSpan(
      name,
      { kind: kinds[kind], startTime: endTime - Math.max(0, ms), attributes: attributes },
      context,
    );
    if (fault !== undefined) span.setStatus({ code: failed, message: fault });
    span.end(endTime);
  }

  async close(): Promise<void> {
    await within(
      this.time,
      closeMs,
      this.shutdown().catch(() => undefined),
      undefined,
    );
  }

  #context(parent: string | null | undefined): Otel.Context | undefined {
    const parts = parentForm.exec(parent ?? "");
    if (parts === null) return undefined;
    const [, traceId = "", spanId = "", flags = "", state] = parts;
    const span = {
      traceId,
      spanId,
      traceFlags: Number.parseInt(flags, 16) & 1,
      isRemote: true,
      ...(state === undefined ? {} : { traceState: this.api.createTraceState(state) }),
    };
    return this.api.isSpanContextValid(span) ? this.api.trace.setSpanContext(this.api.ROOT_CONTEXT, span) : undefined;
  }
}

const parentForm = /^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?: (.+))?$/;

const isSampled = (parent: string): boolean => (Number.parseInt(parentForm.exec(parent)?.[3] ?? "0", 16) & 1) === 1;

/** What can't be sent is lost, and said now and then. */
function complaining(exporter: SpanExporter, time: Time, log: Logger): SpanExporter {
  let quietUntil = -Infinity;
  return {
    export(spans: ReadableSpan[], done: Parameters<SpanExporter["export"]>[1]): void {
      exporter.export(spans, (result) => {
        if (result.error !== undefined && time.monotonic() >= quietUntil) {
          quietUntil = time.monotonic() + complainMs;
          log.warn("traces can't be sent", { spans: spans.length, error: result.error });
        }
        done(result);
      });
    },
    shutdown: () => exporter.shutdown(),
    ...(exporter.forceFlush === undefined ? {} : { forceFlush: () => exporter.forceFlush?.() ?? Promise.resolve() }),
  };
}
