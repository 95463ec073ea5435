"use strict";

// The token is in the address after `#`, which no browser sends anywhere.
const token = location.hash.slice(1);
const shown = { decisions: [], most: 500 };

const $ = (id) => document.getElementById(id);

// Everything that comes from outside becomes text, never markup.
function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

async function ask(what) {
  const answer = await fetch("api/" + what, { headers: { authorization: "Bearer " + token } });
  if (!answer.ok) throw new Error((await answer.text()).trim() || "status " + answer.status);
  return answer;
}

const moment = (text) => (text ? text.replace("T", " ").replace(/\.\d+/, "").replace("Z", "") : "never");
const often = (count) => (count === 1 ? "once" : count + " times");
const kindOf = (outcome) => ({ allowed: "good", monitored: "warn" })[outcome] || "bad";

// Health

function showHealth(status) {
  const bundle = status.bundle ? status.bundle.issuer + " " + status.bundle.version : "none";
  const lost = Object.values(status.lost || {}).reduce((sum, count) => sum + count, 0);
  const state = status.state || "unknown";
  const facts = [
    ["state", state, state.startsWith("enforcing") ? "good" : "bad"],
    ["tier", status.tier],
    ["bundle", bundle + (status.stale ? " (stale)" : ""), status.stale ? "bad" : ""],
    ["protected files", status.files],
    ["lost records", lost, lost ? "bad" : ""],
    ["not covered", (status.notCovered || []).length + " things"],
  ];
  if (status.reason) facts.push(["reason", status.reason, "bad"]);
  for (const sink of status.sinks || []) {
    facts.push(["sink " + sink.name, sink.error || sink.behind + " behind", sink.error ? "bad" : "good"]);
  }
  $("health").replaceChildren(...facts.map(([name, value, kind]) => {
    const fact = element("div");
    fact.append(element("dt", name), element("dd", value, kind));
    return fact;
  }));
}

// Decisions

function wanted(line) {
  const filters = $("filters").elements;
  const group = line.outcome === "allowed" || line.outcome === "monitored" ? line.outcome : "denied";
  const text = filters.text.value.toLowerCase();
  const all = Object.values(line).join(" ").toLowerCase();
  return filters[group].checked && all.includes(text);
}

function showDecisions() {
  const lines = shown.decisions.filter(wanted);
  $("shown").textContent = lines.length + " of " + shown.decisions.length;
  $("decisions").tBodies[0].replaceChildren(...lines.slice(0, 200).map((line) => {
    const row = element("tr");
    row.append(
      element("td", moment(line.time)),
      element("td", line.outcome, kindOf(line.outcome)),
      element("td", line.act),
      element("td", line.who, "long"),
      element("td", line.credential),
      element("td", line.to, "long"),
      element("td", line.why, "long"),
    );
    return row;
  }));
}

// Server-sent events, read with fetch: an EventSource has no place for a token.
async function follow() {
  const reader = (await ask("events")).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const field = (name) => (block.match(new RegExp("^" + name + ": ?(.*)$", "m")) || [])[1];
      if (field("event") === "decision") shown.decisions.unshift(JSON.parse(field("data")));
      if (field("event") === "missed") trouble(field("data") + " decisions came too fast to be shown; the log has them");
    }
    shown.decisions.length = Math.min(shown.decisions.length, shown.most);
    if (blocks.length) requestAnimationFrame(showDecisions);
  }
}

// The matrix

function showMatrix(board) {
  const credentials = [...new Set(board.matrix.map((cell) => cell.credential))].sort();
  const workloads = [...new Set(board.matrix.map((cell) => cell.workload))].sort();
  const head = element("tr");
  head.append(element("th", ""), ...credentials.map((name) => element("th", name)));
  $("matrix").tHead.replaceChildren(head);
  $("matrix").tBodies[0].replaceChildren(...workloads.map((workload) => {
    const row = element("tr");
    row.append(element("th", workload));
    for (const credential of credentials) {
      const place = element("td");
      const cell = board.matrix.find((it) => it.workload === workload && it.credential === credential);
      if (cell) {
        const text = moment(cell.last) + (cell.denied ? " · " + cell.denied + " denied" : "");
        const button = element("button", text, cell.denied ? "bad" : "");
        button.addEventListener("click", () => showCell(cell));
        place.append(button);
      }
      row.append(place);
    }
    return row;
  }));
}

function showCell(cell) {
  const list = element("ul");
  const destinations = Object.entries(cell.destinations);
  list.append(...destinations.map(([to, count]) => element("li", to + ": " + often(count))));
  if (!destinations.length) list.append(element("li", "no destination was reached or tried"));
  $("cell").replaceChildren(
    element("strong", cell.workload + " and " + cell.credential),
    element("div", "allowed " + often(cell.allowed) + ", denied " + often(cell.denied) + ", last " + moment(cell.last)),
    list,
  );
  $("cell").hidden = false;
}

// Findings

function showFindings(answer) {
  const findings = answer.findings || [];
  const items = findings.map((finding) => {
    const item = element("li");
    const kind = finding.severity === "high" ? "bad" : "warn";
    item.append(
      element("span", finding.severity, kind), " ", element("strong", finding.kind), ": ", finding.message, " ",
      element("small", [finding.owasp, finding.nist].filter(Boolean).join(", ")),
    );
    for (const line of finding.evidence || []) item.append(element("div", line));
    if (finding.remedy) item.append(element("pre", finding.remedy));
    return item;
  });
  const note = answer.error || answer.undecided;
  if (note) items.push(element("li", note));
  if (!items.length) items.push(element("li", "nothing"));
  $("findings").replaceChildren(...items);
}

// Entitlements

const times = (seen) => (seen ? often(seen.count) + ", first " + moment(seen.first) + ", last " + moment(seen.last) : "never");

function showEntitlements(usage) {
  const open = new Set([...document.querySelectorAll("#entitlements details[open]")].map((it) => it.id));
  const all = (usage.entitlements || []).map((it) => {
    const details = element("details");
    details.id = "entitlement-" + it.id;
    details.open = open.has(details.id);
    const summary = element("summary");
    const overdue = it.reviewBy && it.reviewBy < new Date().toISOString().slice(0, 10);
    summary.append(element("strong", it.id), ": " + it.workload + " may use " + it.credential + ". ");
    summary.append("Approved by " + (it.approver || "nobody") + (it.ticket ? " (" + it.ticket + ")" : "") + ", to be reviewed ");
    summary.append(element("span", it.reviewBy || "never", overdue ? "bad" : ""));
    summary.append(it.inForce ? "" : " (no longer in force)");
    const evidence = element("ul");
    evidence.append(element("li", "used " + times(it.used)), element("li", "denied " + times(it.denied)));
    for (const by of it.by || []) {
      evidence.append(element("li", by.verdict + ": " + by.executable + " as user " + by.uid + " in " + by.place + ", " + times(by)));
    }
    for (const to of it.destinations || []) {
      const name = to.host ? to.host + " (" + to.address + ")" : to.address;
      evidence.append(element("li", to.verdict + " to " + name + " port " + to.port + ": " + times(to)));
    }
    details.append(summary, evidence);
    return details;
  });
  $("entitlements").replaceChildren(...(all.length ? all : [element("p", usage.error || "none")]));
}

// Together

async function refresh() {
  const [status, board, usage, findings] = await Promise.all(
    ["status", "board", "usage", "findings"].map(async (what) => (await ask(what)).json()),
  );
  showHealth(status);
  showMatrix(board.board);
  showEntitlements(usage);
  showFindings(findings);
  return board.recent;
}

async function live() {
  for (;;) {
    try {
      shown.decisions = await refresh();
      showDecisions();
      trouble("");
      document.body.dataset.ready = "yes";
      await follow();
    } catch (error) {
      trouble(error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, 3000));
  }
}

$("filters").addEventListener("input", showDecisions);
$("filters").addEventListener("submit", (event) => event.preventDefault());
setInterval(() => refresh().catch((error) => trouble(error.message)), 5000);
live();
