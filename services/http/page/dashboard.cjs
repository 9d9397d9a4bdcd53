"use strict";
// The page's script: polls what the datacenter says, listens to its events, and draws both. Text only ever becomes text nodes.
(() => {
  const pollMs = 2000;
  const slowPollMs = 6000;
  const freshMs = 15_000;
  const glyphs = { serving: "●", catching_up: "◐", suspect: "?", fenced: "■", dead: "✕" };
  const tones = { serving: "good", catching_up: "warn", suspect: "warn", fenced: "bad", dead: "bad" };
  const words = { catching_up: "catching up" };
  const jobStatuses = ["queued", "running", "paused", "failed"];

  const $ = (id) => document.getElementById(id);
  const state = {
    topology: null,
    shards: [],
    changed: new Map(),
    history: [],
    historyCursor: null,
    gauges: {},
    jobs: {},
    answeredAt: 0,
    connected: false,
    failure: "",
    /** Why the datacenter lets nobody in who comes like this; "" while it does. */
    refused: "",
    refusedAt: 0,
  };

  // Kept as long as this tab is open, for this datacenter alone.
  const tokenName = "hothot.token";
  let token = sessionStorage.getItem(tokenName) ?? "";
  const refusedMs = 30_000;
  const mayAsk = () => state.refused === "" || Date.now() - state.refusedAt > refusedMs;

  /** @returns an element; attributes that are null are left out, children may be text. */
  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {}))
      if (value !== null && value !== undefined) node.setAttribute(name, value);
    node.append(
      ...children
        .filter((child) => child !== null && child !== undefined)
        .map((child) => (child instanceof Node ? child : String(child))),
    );
    return node;
  }
  const number = (value) =>
    typeof value === "number" && Number.isFinite(value) ? Math.round(value).toLocaleString("en") : "–";
  const cell = (value, kind) => el("td", kind ? { class: kind } : null, value ?? "–");

  /** Asks with the token, if there is one. @throws Error when the answer is none of success */
  async function ask(path, accept, signal) {
    const asked = token;
    const headers = { Accept: accept, ...(asked === "" ? {} : { Authorization: `Bearer ${asked}` }) };
    const response = await fetch(path, { signal, headers });
    if (response.ok) return response;
    if ((response.status === 401 || response.status === 403) && asked === token) {
      const { detail } = await response.json().catch(() => ({ detail: "" }));
      refuse(
        asked === ""
          ? "This datacenter answers only who brings a token."
          : `The token was refused: ${detail || `status ${response.status}`}`,
      );
    }
    throw new Error(`${path} answered ${response.status}`);
  }

  async function get(path) {
    const response = await ask(path, "application/json", AbortSignal.timeout(5000));
    const by = response.headers.get("Hothot-Served-By");
    if (by && $("here").textContent !== by) {
      $("here").textContent = by;
      document.title = `${by.split("/")[0]} – hothot`;
    }
    return path.startsWith("/metrics") ? response.text() : response.json();
  }

  async function pages(path, from, most) {
    const items = [];
    let cursor = from;
    let last = from;
    for (let i = 0; i < most; i++) {
      const page = await get(`${path}?limit=1000${cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`}`);
      items.push(...page.items);
      last = cursor;
      cursor = page.nextCursor ?? null;
      if (cursor === null) break;
    }
    return { items, last };
  }

  async function pollFast() {
    try {
      const [topology, shards] = await Promise.all([get("/v1/topology"), pages("/v1/shards", null, 20)]);
      noteChanges(shards.items);
      state.topology = topology;
      state.shards = shards.items;
      state.answeredAt = Date.now();
      state.failure = "";
      state.refused = "";
    } catch (error) {
      state.failure = error instanceof Error ? error.message : String(error);
    }
    draw();
  }

  async function pollSlow() {
    await Promise.allSettled([pollHistory(), pollGauges(), pollJobs()]);
    draw();
  }

  async function pollHistory() {
    const { items, last } = await pages("/v1/history", state.historyCursor, 100);
    const known = new Set(items.map((change) => change.id));
    state.history = [...state.history.filter((change) => !known.has(change.id)), ...items].slice(-3000);
    state.historyCursor = last;
  }

  async function pollGauges() {
    const text = await get("/metrics");
    for (const name of ["hothot_unpublished_records", "hothot_divergent_operations"]) {
      const samples = text.split("\n").filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`));
      state.gauges[name] =
        samples.length === 0 ? null : samples.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
    }
  }

  async function pollJobs() {
    await Promise.all(
      jobStatuses.map(async (status) => {
        state.jobs[status] = await get(`/v1/jobs?status=${status}&limit=100`);
      }),
    );
  }

  function noteChanges(shards) {
    const now = Date.now();
    const before = new Map(state.shards.map((shard) => [shard.shard, shard]));
    for (const shard of shards) {
      const old = before.get(shard.shard);
      if (old && (old.epoch !== shard.epoch || old.owner !== shard.owner)) state.changed.set(shard.shard, now);
    }
    for (const [shard, at] of state.changed) if (now - at > freshMs) state.changed.delete(shard);
  }

  // A datacenter keeps its colour and letter as long as the page is open.
  const owners = [];
  function ownerIndex(name) {
    if (name === null || name === undefined) return -1;
    if (!owners.includes(name)) owners.push(name);
    return owners.indexOf(name);
  }
  const ownerClass = (name) => (ownerIndex(name) < 0 ? "owner-none" : `owner-${ownerIndex(name) % 8}`);
  /** The shortest beginning that no other owner shares. */
  function ownerMark(name) {
    if (ownerIndex(name) < 0) return "–";
    for (let n = 1; n <= name.length; n++) {
      const start = name.slice(0, n);
      if (!owners.some((other) => other !== name && other.startsWith(start))) return start.toUpperCase();
    }
    return name.toUpperCase();
  }
  const swatch = (name) => el("span", { class: `swatch ${ownerClass(name)}`, "aria-hidden": "true" }, ownerMark(name));

  function draw() {
    drawLive();
    if (state.topology === null) return;
    for (const dc of state.topology.datacenters) ownerIndex(dc.name);
    drawAlerts();
    drawFacts();
    drawSites();
    drawShards();
    drawHistory();
    drawJobs();
  }

  function drawLive() {
    const age = Math.round((Date.now() - state.answeredAt) / 1000);
    drawAccess();
    const stale = state.failure !== "" || (state.answeredAt > 0 && age > 10);
    const text =
      state.refused !== ""
        ? "no access"
        : stale
          ? state.answeredAt === 0
            ? `no answer: ${state.failure}`
            : `no answer for ${age} s; what is shown is that old`
          : state.answeredAt === 0
            ? "connecting"
            : state.connected
              ? "live"
              : "polling; events are not connected";
    $("live").className = stale ? "bad" : "";
    $("live").firstElementChild.textContent = stale ? "✕" : state.connected ? "●" : "○";
    if ($("live-text").textContent !== text) $("live-text").textContent = text;
    document.querySelector("main").classList.toggle("stale", stale);
  }

  function refuse(why) {
    state.refused = why;
    state.refusedAt = Date.now();
    drawLive();
  }

  function drawAccess() {
    $("access").hidden = state.refused === "" && token === "";
    $("access").className = state.refused === "" ? "" : "bad";
    const text = state.refused !== "" ? state.refused : "A token is in use, for this tab.";
    if ($("access-text").textContent !== text) $("access-text").textContent = text;
    $("forget").hidden = token === "";
  }

  function useToken(text) {
    token = text;
    if (text === "") sessionStorage.removeItem(tokenName);
    else sessionStorage.setItem(tokenName, text);
    $("token").value = "";
    state.refused = "";
    listening?.abort();
    void pollFast();
    void pollSlow();
  }
  $("access").addEventListener("submit", (event) => {
    event.preventDefault();
    useToken($("token").value.trim());
  });
  $("forget").addEventListener("click", () => useToken(""));
  // A link alone brings no token.
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="/v1/"]');
    if (link === null || token === "") return;
    event.preventDefault();
    const tab = window.open("", "_blank");
    ask(link.getAttribute("href"), "application/json", AbortSignal.timeout(5000))
      .then((response) => response.text())
      .catch((error) => String(error))
      .then((text) => {
        const url = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
        if (tab !== null) tab.location.href = url;
        setTimeout(() => URL.revokeObjectURL(url), 60_000);
      });
  });

  function drawAlerts() {
    const { topology, shards, gauges } = state;
    const alerts = [];
    const unowned = shards.filter((shard) => shard.state === "unowned" || shard.owner === null).length;
    if (unowned > 0) alerts.push(["bad", `${unowned} shard(s) have no owner: their writes wait.`]);
    for (const dc of topology.datacenters)
      if (dc.state === "dead" || dc.state === "fenced") alerts.push(["bad", `${dc.name} is ${dc.state}.`]);
    const diverged = gauges["hothot_divergent_operations"];
    if (diverged > 0)
      alerts.push(["warn", `${diverged} divergent operation(s) are kept here and wait for a decision.`]);
    if (topology.failoverPaused) alerts.push(["warn", "Automatic takeovers are paused."]);
    else if (topology.automaticTakeover && !topology.automaticTakeover.possible)
      alerts.push([
        "warn",
        `No automatic takeover is possible: ${topology.automaticTakeover.why ?? "no reason given"}`,
      ]);
    const key = JSON.stringify(alerts);
    if ($("alerts").dataset.key === key) return;
    $("alerts").dataset.key = key;
    $("alerts").replaceChildren(
      ...alerts.map(([tone, text]) => el("p", { class: `alert ${tone}` }, `${tone === "bad" ? "✕" : "!"} ${text}`)),
    );
  }

  function drawFacts() {
    const { topology, shards, gauges } = state;
    const count = (wanted) => shards.filter((shard) => shard.state === wanted).length;
    const lags = topology.datacenters.map((dc) => dc.lag?.ms).filter((ms) => typeof ms === "number");
    const serving = topology.datacenters.filter((dc) => dc.state === "serving").length;
    const facts = [
      [
        "Datacenters serving",
        `${serving} of ${topology.datacenters.length}`,
        serving < topology.datacenters.length ? "bad" : "",
      ],
      ["Shards owned", `${count("owned")} of ${topology.shards}`, count("owned") < topology.shards ? "warn" : ""],
      ["Moving / unowned", `${count("moving")} / ${count("unowned")}`, count("unowned") > 0 ? "bad" : ""],
      ["Worst lag, ms", lags.length === 0 ? "–" : number(Math.max(...lags)), ""],
      ["Unpublished here", number(gauges["hothot_unpublished_records"] ?? NaN), ""],
      [
        "Divergent here",
        number(gauges["hothot_divergent_operations"] ?? NaN),
        gauges["hothot_divergent_operations"] > 0 ? "warn" : "",
      ],
    ];
    $("facts").replaceChildren(
      ...facts.map(([name, value, tone]) =>
        el("div", null, el("dt", null, name), el("dd", tone ? { class: tone } : null, value)),
      ),
    );
  }

  function drawSites() {
    const { topology } = state;
    const longest = Math.max(1500, ...topology.datacenters.map((dc) => dc.leaseMsLeft ?? 0));
    const here = $("here").textContent.split("/")[0];
    const rows = topology.datacenters.map((dc) => {
      const left = dc.leaseMsLeft;
      return el(
        "tr",
        null,
        el("th", { scope: "row" }, swatch(dc.name), " ", dc.name, dc.name === here ? " (this page)" : ""),
        el("td", { class: tones[dc.state] ?? "" }, `${glyphs[dc.state] ?? ""} ${words[dc.state] ?? dc.state}`),
        typeof left === "number"
          ? el(
              "td",
              null,
              el("meter", {
                min: 0,
                max: longest,
                low: longest * 0.3,
                value: Math.max(0, left),
                "aria-label": "lease left",
              }),
              ` ${number(left)} ms`,
            )
          : cell("none"),
        cell(number(dc.shardsOwned), "n"),
        cell(number(dc.lag?.positions), "n"),
        cell(number(dc.lag?.ms), "n"),
      );
    });
    for (const witness of topology.witnesses ?? [])
      rows.push(
        el(
          "tr",
          null,
          el("th", { scope: "row" }, witness.name),
          el("td", { class: tones[witness.state] ?? "" }, `${glyphs[witness.state] ?? ""} ${witness.state}, witness`),
          cell("–"),
          cell("–", "n"),
          cell("–", "n"),
          cell("–", "n"),
        ),
      );
    $("sites").replaceChildren(...rows);
    $("takeover").textContent = topology.failoverPaused
      ? "Automatic takeovers are paused by an operator."
      : topology.automaticTakeover?.possible
        ? "Automatic takeover is possible."
        : `Automatic takeover is not possible: ${topology.automaticTakeover?.why ?? "no reason given"}`;
    const peers = topology.datacenters.filter((dc) => dc.name !== here && /^https?:\/\//.test(dc.url ?? ""));
    const key = peers.map((dc) => dc.url).join(" ");
    if ($("peers").dataset.key === key) return;
    $("peers").dataset.key = key;
    $("peers").replaceChildren(...peers.map((dc) => el("a", { href: dc.url }, dc.name)));
  }

  function describe(shard) {
    const since = shard.since ? `, since ${when(shard.since)}` : "";
    return `shard ${shard.shard}, partition ${shard.partition}: ${shard.state}, owner ${shard.owner ?? "none"}, epoch ${shard.epoch}, position ${shard.position}${since}${shard.reason ? ` (${shard.reason})` : ""}`;
  }

  const cells = new Map();
  let current = 0;
  function drawShards() {
    const grid = $("shards");
    grid.classList.toggle("many", state.shards.length > 256);
    for (const shard of state.shards) {
      let button = cells.get(shard.shard);
      if (button === undefined) {
        button = el(
          "button",
          { type: "button", tabindex: shard.shard === current ? 0 : -1, "data-shard": shard.shard },
          el("b"),
          el("span"),
        );
        cells.set(shard.shard, button);
        grid.append(button);
      }
      const text = describe(shard);
      if (button.title !== text) {
        button.title = text;
        button.setAttribute("aria-label", text);
      }
      const mark = `${ownerMark(shard.owner)}${shard.state === "moving" ? "»" : ""}`;
      if (button.firstChild.textContent !== mark) button.firstChild.textContent = mark;
      const id = String(shard.shard);
      if (button.lastChild.textContent !== id) button.lastChild.textContent = id;
      button.className = `${ownerClass(shard.state === "unowned" ? null : shard.owner)} ${shard.state}${state.changed.has(shard.shard) ? " fresh" : ""}`;
    }
    const counts = new Map(owners.map((name) => [name, 0]));
    for (const shard of state.shards) counts.set(shard.owner, (counts.get(shard.owner) ?? 0) + 1);
    $("legend").replaceChildren(
      ...[...counts].map(([name, count]) => el("li", null, swatch(name), ` ${name ?? "no owner"}: ${count}`)),
      el("li", null, "dashed, »: moving"),
      el("li", null, "ringed: changed in the last 15 s"),
    );
    if (grid.contains(document.activeElement)) show(current);
  }

  function show(shard) {
    const found = state.shards.find((one) => one.shard === shard);
    if (found && $("shard").textContent !== describe(found)) $("shard").textContent = describe(found);
  }
  function focusShard(shard) {
    const button = cells.get(shard);
    if (button === undefined) return;
    cells.get(current)?.setAttribute("tabindex", "-1");
    current = shard;
    button.setAttribute("tabindex", "0");
    button.focus();
  }
  $("shards").addEventListener("mouseover", (event) => {
    const button = event.target.closest("button");
    if (button) show(Number(button.dataset.shard));
  });
  $("shards").addEventListener("focusin", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    cells.get(current)?.setAttribute("tabindex", "-1");
    current = Number(button.dataset.shard);
    button.setAttribute("tabindex", "0");
    show(current);
  });
  $("shards").addEventListener("keydown", (event) => {
    const columns = getComputedStyle($("shards")).gridTemplateColumns.split(" ").length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    focusShard(current + step);
  });

  function when(text) {
    const at = new Date(text);
    if (Number.isNaN(at.getTime())) return String(text);
    const time = at.toLocaleTimeString("en-GB");
    return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString("en-CA")} ${time}`;
  }
  const timeCell = (text) => el("td", null, el("time", { datetime: text, title: text }, when(text)));

  /** Changes of one kind, from one owner to one other, within ten seconds of each other are one row. */
  function grouped(changes) {
    const groups = [];
    for (let i = changes.length - 1; i >= 0 && groups.length < 15; i--) {
      const change = changes[i];
      const match = groups.find(
        (group) =>
          group.kind === change.kind &&
          group.from === change.from &&
          group.to === change.to &&
          Math.abs(Date.parse(group.first) - Date.parse(change.at)) < 10_000,
      );
      if (match) {
        match.shards.push(change.shard);
        match.first = change.at;
        match.divergent += change.divergent ?? 0;
      } else groups.push({ ...change, first: change.at, shards: [change.shard], divergent: change.divergent ?? 0 });
    }
    return groups;
  }

  function ranges(numbers) {
    const sorted = [...new Set(numbers)].sort((a, b) => a - b);
    const out = [];
    for (let i = 0; i < sorted.length; i++) {
      const from = sorted[i];
      while (sorted[i + 1] === sorted[i] + 1) i++;
      out.push(from === sorted[i] ? `${from}` : `${from}–${sorted[i]}`);
    }
    return out.length > 12 ? `${out.slice(0, 12).join(", ")} and more` : out.join(", ");
  }

  function drawHistory() {
    const rows = grouped(state.history).map((group) =>
      el(
        "tr",
        null,
        timeCell(group.at),
        cell(group.kind),
        cell(group.from ?? "–"),
        cell(group.to ?? "–"),
        cell(number(group.shards.length), "n"),
        cell(ranges(group.shards), "text mono"),
        cell(number(group.divergent), "n"),
        cell(group.reason ?? "", "text"),
        cell(group.by ?? ""),
      ),
    );
    fill("history", rows, 9, "No change yet.");
  }

  function drawJobs() {
    const counts = jobStatuses.map((status) => {
      const list = state.jobs[status];
      const exact = state.topology.jobs?.[status];
      const text =
        typeof exact === "number"
          ? number(exact)
          : list === undefined
            ? "–"
            : `${list.items.length}${list.nextCursor ? "+" : ""}`;
      return el(
        "li",
        status === "failed" && list?.items.length > 0 ? { class: "bad" } : null,
        `${status} `,
        el("b", { class: "mono" }, text),
      );
    });
    $("job-counts").replaceChildren(...counts);
    const unfinished = ["running", "paused", "queued", "failed"]
      .flatMap((status) => state.jobs[status]?.items ?? [])
      .slice(0, 8);
    const rows = unfinished.map((job) =>
      el(
        "tr",
        null,
        cell(el("a", { href: `/v1/jobs/${encodeURIComponent(job.id)}` }, job.id), "mono"),
        cell(el("a", { href: `/v1/clusters/${encodeURIComponent(job.clusterId)}` }, job.clusterId), "mono"),
        cell(job.type),
        cell(job.status, job.status === "failed" ? "bad" : ""),
        cell(job.stage ?? "–"),
        cell(number(job.attempt), "n"),
        cell(job.runsIn),
      ),
    );
    fill("jobs", rows, 7, "No unfinished or failed job.");
  }

  function fill(id, rows, columns, empty) {
    $(id).replaceChildren(
      ...(rows.length > 0 ? rows : [el("tr", null, el("td", { colspan: columns, class: "empty" }, empty))]),
    );
  }

  const events = [];
  let soon = null;
  function onEvent(type, text) {
    events.unshift(
      `${new Date().toLocaleTimeString("en-GB")} ${type} ${text.length > 300 ? `${text.slice(0, 300)}…` : text}`,
    );
    events.length = Math.min(events.length, 50);
    // Many come at once in a takeover: one refresh serves them all.
    soon ??= setTimeout(() => {
      soon = null;
      $("events").replaceChildren(...events.map((line) => el("li", null, line)));
      void pollFast();
      if (type === "ownership") void pollHistory().then(draw, () => undefined);
    }, 250);
  }

  /** Server-sent events, read by hand: an EventSource can't bring a token. */
  let listening = null;
  async function listen() {
    listening = new AbortController();
    try {
      const response = await ask("/v1/events", "text/event-stream", listening.signal);
      state.connected = true;
      drawLive();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) {
          const type = /^event: ?(.*)$/m.exec(part)?.[1];
          if (["ownership", "health", "job"].includes(type))
            onEvent(type, [...part.matchAll(/^data: ?(.*)$/gm)].map((line) => line[1]).join("\n"));
        }
      }
    } catch {
      // Refused, or cut: it begins again below.
    }
    state.connected = false;
    drawLive();
  }

  async function repeat(action, ms) {
    for (;;) {
      if (!document.hidden && mayAsk()) await action();
      await new Promise((resolve) => setTimeout(resolve, ms));
    }
  }

  void repeat(pollFast, pollMs);
  void repeat(pollSlow, slowPollMs);
  setInterval(drawLive, 1000);
  void repeat(listen, 3000);
})();
