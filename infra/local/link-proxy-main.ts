import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { LinkProxy } from "./link-proxy.js";
import type { LinkPlan } from "./links.js";

/** The process of a stack that carries all links between its sites: `node link-proxy-main.js <plan file>`. */
const plan = JSON.parse(readFileSync(process.argv[2] ?? "", "utf8")) as LinkPlan;
const links = plan.links.map((link) => ({
  ...link,
  isCut: false,
  proxies: link.ports.map(({ listen, target, dialer }) => ({
    dialer,
    proxy: new LinkProxy({ listen, target, delayMs: plan.rttMs / 2 }),
  })),
}));
for (const link of links) for (const { proxy } of link.proxies) await proxy.start();

const control = createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
  const [a, b] = [searchParams.get("a"), searchParams.get("b")];
  if (request.headers.authorization !== `Bearer ${plan.token}`) {
    response.writeHead(401).end();
    return;
  }
  if (request.method === "POST" && (pathname === "/cut" || pathname === "/heal")) {
    for (const link of links) {
      const meant =
        b === null ? link.a === a || link.b === a : (link.a === a && link.b === b) || (link.a === b && link.b === a);
      if (!meant) continue;
      link.isCut = pathname === "/cut";
      // Of a link that is cut one way only what `a` of the request sends is held.
      const oneWay = searchParams.get("oneWay") === "true";
      for (const { dialer, proxy } of link.proxies)
        if (!link.isCut) proxy.heal();
        else if (oneWay) proxy.cut({ there: link[dialer] === a, back: link[dialer] !== a });
        else proxy.cut();
    }
  }
  response.writeHead(200, { "content-type": "application/json" });
  response.end(JSON.stringify(links.map((link) => ({ a: link.a, b: link.b, cut: link.isCut }))));
});
control.listen(plan.controlPort, "127.0.0.1");
