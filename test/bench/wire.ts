import { connect, type Socket } from "node:net";

/**
 * The cheapest client that still speaks HTTP: requests are bytes made beforehand, one under way per connection, and of
 * an answer only the status and the length are read. So what is measured is the server, on a machine that both share.
 * @param answered gets the status of each answer that counts; without it an answer but 2xx is an error
 * @returns answers per second
 */
export async function hammer(
  url: URL,
  requests: readonly Buffer[] | ((number: number) => Buffer),
  connections: number,
  seconds: number,
  answered?: (status: number) => void,
): Promise<number> {
  let answers = 0;
  let counting = false;
  let failure: Error | undefined;
  let next = 0;
  const request =
    typeof requests === "function"
      ? requests
      : (number: number): Buffer | string => requests[number % requests.length] ?? "";
  const sockets: Socket[] = [];
  const stopped = (socket: Socket): Promise<void> => new Promise((resolve) => socket.once("close", () => resolve()));
  const one = (): Socket => {
    const socket = connect({ host: url.hostname, port: Number(url.port), noDelay: true });
    const send = (): void => void socket.write(request(next++));
    let got = Buffer.alloc(0);
    socket.on("connect", send);
    socket.on("data", (chunk) => {
      got = got.length === 0 ? chunk : Buffer.concat([got, chunk]);
      const length = answerLength(got);
      if (length === null || got.length < length) return;
      const status = Number(got.subarray(9, 12).toString("latin1"));
      if (answered === undefined && (status < 200 || status >= 300))
        failure ??= new Error(`answered ${got.subarray(0, 400).toString()}`);
      if (counting) {
        answers++;
        answered?.(status);
      }
      got = Buffer.alloc(0);
      if (failure === undefined) send();
      else socket.destroy();
    });
    socket.on("error", (error) => (failure ??= error));
    return socket;
  };
  for (let i = 0; i < connections; i++) sockets.push(one());
  const closed = sockets.map(stopped);
  await pause(500);
  counting = true;
  const startedAt = performance.now();
  await pause(seconds * 1000);
  counting = false;
  const took = performance.now() - startedAt;
  for (const socket of sockets) socket.destroy();
  await Promise.all(closed);
  if (failure !== undefined) throw failure;
  return (answers * 1000) / took;
}

/** A PUT as bytes; `head` is further header lines, each with its line end. */
export function putBytes(url: URL, path: string, body: unknown, head = ""): Buffer {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  return Buffer.from(
    `PUT ${path} HTTP/1.1\r\nHost: ${url.host}\r\nContent-Type: application/json\r\n${head}Content-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  );
}

/** Of an HTTP answer: head and body together; null while the head is not whole. */
export function answerLength(got: Buffer): number | null {
  const end = got.indexOf("\r\n\r\n");
  if (end < 0) return null;
  const length = /\r\ncontent-length: *(\d+)/i.exec(got.subarray(0, end).toString("latin1"));
  return end + 4 + Number(length?.[1] ?? 0);
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
