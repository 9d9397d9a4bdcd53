import { connect, createServer, type Server, type Socket } from "node:net";

/** Bytes on the way in one direction at most; then the sender has to wait, as on a real link. */
const window = 8 * 1024 * 1024;

/** Connections that may wait for the end of a cut; the oldest is dropped for one more. */
const maxConnections = 1000;

/** Directions of a link that are held: from who connects to who listens, and back. */
export interface Cut {
  readonly there: boolean;
  readonly back: boolean;
}

const heldNowhere: Cut = { there: false, back: false };

export interface LinkProxyOptions {
  readonly listen: number;
  readonly target: number;
  /** Milliseconds that each byte takes, one way. */
  readonly delayMs: number;
}

/**
 * Carries TCP connections over a link that takes time and can be cut. A cut link loses nothing and closes nothing: like one whose
 * packets are dropped, it stays silent, and what was sent arrives after it heals, if both ends still want it.
 */
export class LinkProxy {
  readonly #options: LinkProxyOptions;
  readonly #server: Server;
  readonly #connections = new Set<Connection>();
  #cut: Cut = heldNowhere;

  constructor(options: LinkProxyOptions) {
    this.#options = options;
    this.#server = createServer({ allowHalfOpen: true, noDelay: true, pauseOnConnect: true }, (socket) =>
      this.#accept(socket),
    );
  }

  start(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(this.#options.listen, "127.0.0.1", resolve);
    });
  }

  /** Ends it and all its connections. */
  stop(): void {
    this.#server.close();
    for (const connection of this.#connections) connection.destroy();
  }

  /** What is held from now on; the rest goes on, or goes on again. */
  cut(cut: Cut = { there: true, back: true }): void {
    this.#cut = cut;
    for (const connection of this.#connections) connection.judge(cut);
  }

  heal(): void {
    this.cut(heldNowhere);
  }

  #accept(socket: Socket): void {
    const connection = new Connection(socket, this.#options, () => this.#connections.delete(connection));
    this.#connections.add(connection);
    const [oldest] = this.#connections;
    if (this.#connections.size > maxConnections) oldest?.destroy();
    connection.judge(this.#cut);
  }
}

class Connection {
  readonly #near: Socket;
  readonly #options: LinkProxyOptions;
  readonly #onClosed: () => void;
  #far: Socket | undefined;
  #lanes: Lane[] = [];

  constructor(near: Socket, options: LinkProxyOptions, onClosed: () => void) {
    this.#near = near;
    this.#options = options;
    this.#onClosed = onClosed;
    near.on("error", () => this.#fail(0)).once("close", () => this.#closed());
  }

  /** A connection is made only when nothing of it is held; one that exists is held lane by lane. */
  judge(cut: Cut): void {
    if (this.#near.destroyed) return;
    if (this.#far === undefined) {
      if (cut.there || cut.back) return;
      const far = connect({ port: this.#options.target, host: "127.0.0.1", allowHalfOpen: true, noDelay: true });
      far.on("error", () => this.#fail(1)).once("close", () => this.#closed());
      this.#far = far;
      this.#lanes = [
        new Lane(this.#near, far, this.#options.delayMs),
        new Lane(far, this.#near, this.#options.delayMs),
      ];
    }
    const [there, back] = this.#lanes;
    if (cut.there) there?.hold();
    else there?.release();
    if (cut.back) back?.hold();
    else back?.release();
  }

  destroy(): void {
    this.#near.destroy();
    this.#far?.destroy();
  }

  /** One side broke; the other learns it as late as everything else. */
  #fail(side: number): void {
    const lane = this.#lanes[side];
    if (lane === undefined) this.destroy();
    else lane.fail();
  }

  #closed(): void {
    if (this.#near.destroyed && this.#far?.destroyed !== false) this.#onClosed();
  }
}

/** One direction of a connection. */
class Lane {
  readonly #from: Socket;
  readonly #to: Socket;
  readonly #delayMs: number;
  readonly #queue: { readonly due: number; readonly what: Buffer | "end" | "fail" }[] = [];
  #bytes = 0;
  #held = true;
  #blocked = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(from: Socket, to: Socket, delayMs: number) {
    this.#from = from;
    this.#to = to;
    this.#delayMs = delayMs;
    from.on("data", (chunk) => this.#push(chunk)).once("end", () => this.#push("end"));
    from.once("close", () => this.#push("fail"));
    to.on("drain", () => {
      this.#blocked = false;
      this.#run();
    });
    from.pause();
  }

  hold(): void {
    this.#held = true;
    this.#from.pause();
  }

  release(): void {
    this.#held = false;
    this.#run();
  }

  fail(): void {
    this.#push("fail");
  }

  #push(what: Buffer | "end" | "fail"): void {
    this.#queue.push({ due: performance.now() + this.#delayMs, what });
    if (typeof what !== "string") this.#bytes += what.length;
    this.#run();
  }

  #run(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#held) return;
    for (let head = this.#queue[0]; head !== undefined && !this.#blocked; head = this.#queue[0]) {
      const wait = head.due - performance.now();
      if (wait > 0.25) {
        this.#timer = setTimeout(() => this.#run(), wait);
        break;
      }
      this.#queue.shift();
      this.#deliver(head.what);
    }
    if (this.#bytes >= window) this.#from.pause();
    else if (this.#from.isPaused() && !this.#from.destroyed) this.#from.resume();
  }

  #deliver(what: Buffer | "end" | "fail"): void {
    if (what === "end") this.#to.end();
    else if (what === "fail") {
      // After an orderly end what was written is still on its way out.
      if (!this.#to.writableEnded) this.#to.destroy();
    } else {
      this.#bytes -= what.length;
      if (!this.#to.destroyed && !this.#to.writableEnded) this.#blocked = !this.#to.write(what);
    }
  }
}
