"use strict";
const $ = (id) => document.getElementById(id);
let current = null, sending = null;

function show(title, step, fraction, trouble) {
  $("status").hidden = false;
  $("title").textContent = title;
  $("step").textContent = step;
  $("step").className = trouble ? "stop" : "";
  $("bar").hidden = fraction === null;
  $("bar").value = fraction === null ? 0 : fraction;
}

function end(title, step, trouble) {
  show(title, step, null, trouble);
  $("stop").hidden = true;
  $("form").querySelector("button").disabled = false;
}

function link(href, text) {
  const item = document.createElement("li"), anchor = document.createElement("a");
  anchor.href = href;
  anchor.textContent = text;
  item.append(anchor);
  $("links").append(item);
}

function finish(job) {
  const cases = Object.entries(job.summary.cases);
  const found = (levels) => {          // of an MR bodies and discs, which are in no order
    const whole = levels.filter((level) => !level.includes("/")), discs = levels.length - whole.length;
    if (discs) return `${whole.length} bodies and ${discs} discs`;
    return whole.length === 1 ? whole[0] : `${whole[0]} to ${whole[whole.length - 1]}`;
  };
  const parts = cases.map(([name, one]) => one.reason ? `${name}: ${one.reason}` :
    `${name}: ${one.levels.length ? found(one.levels) : one.status}` +
    (one.numbering_anchored === false && one.levels.length ? ", numbering not anchored" : "") +
    (one.review_required ? ", please review" : ""));
  end("Done", parts.join("; "), false);
  const base = `/scans/${job.id}/`, pages = job.files.filter((name) => name.endsWith(".html"));
  pages.forEach((name) => link(base + "files/" + encodeURI(name), `Look: ${name}`));
  link(base + "results.zip", "Download everything (.zip)");
  job.files.filter((name) => /\.(nii\.gz|json|csv|nrrd|dcm)$/.test(name)).forEach((name) => link(base + "files/" + encodeURI(name), name));
}

async function watch() {
  const id = current;
  let failures = 0;
  while (current === id) {
    try {
      const answer = await fetch(`/scans/${id}`);
      if (!answer.ok) { end("Gone", (await answer.json()).detail, true); return; }
      const job = await answer.json();
      failures = 0;
      if (job.state === "done") { finish(job); return; }
      if (job.state === "failed") { end("Failed", job.reason, true); return; }
      show(job.state === "waiting" ? "Waiting for another scan" : "Working", job.step, job.fraction, false);
    } catch (error) {
      failures += 1;
      if (failures > 5) { end("Lost", "The service does not answer.", true); return; }
    }
    await new Promise((resolve) => setTimeout(resolve, 700));
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const data = new FormData($("form"));
  $("links").replaceChildren();
  $("stop").hidden = false;
  $("form").querySelector("button").disabled = true;
  sending = new XMLHttpRequest();
  sending.upload.addEventListener("progress", (e) => show("Uploading", "", e.total ? e.loaded / e.total : 0, false));
  sending.addEventListener("load", () => {
    let answer = {};
    try { answer = JSON.parse(sending.responseText); } catch (error) { answer = {detail: "The service gave no answer."}; }
    if (sending.status !== 202) { end("Not taken", String(answer.detail), true); return; }
    current = answer.id;
    watch();
  });
  sending.addEventListener("error", () => end("Not taken", "The upload was refused or broke off.", true));
  sending.open("POST", "/scans");
  sending.send(data);
  show("Uploading", "", 0, false);
});

$("stop").addEventListener("click", () => {
  if (current) { fetch(`/scans/${current}`, {method: "DELETE"}); current = null; } else if (sending) { sending.abort(); }
  end("Stopped", "", false);
});

const drop = $("drop");
["dragover", "dragleave", "drop"].forEach((name) => drop.addEventListener(name, (event) => {
  event.preventDefault();
  drop.classList.toggle("over", name === "dragover");
  if (name === "drop" && event.dataTransfer.files.length) { $("file").files = event.dataTransfer.files; }
}));
