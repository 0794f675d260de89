"""The page at ``/``: lists the tasks and tries them. It loads nothing from elsewhere."""

from __future__ import annotations

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>taskedge serve</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .6rem; }
tr + tr { border-top: 1px solid #ccc; } textarea { width: 100%; box-sizing: border-box; } pre { white-space: pre-wrap; }
</style>
<h1>Tasks</h1>
<p><label>Token, if the server needs one: <input id="token" type="password" autocomplete="off"></label>
<button id="reload">Reload</button></p>
<p id="base"></p>
<table><thead><tr><th>name</th><th>task</th><th>labels</th><th>batches</th><th>bytes</th></tr></thead>
<tbody id="tasks"></tbody></table>
<ul id="refused"></ul>
<h2>Try one</h2>
<p><label>Task: <select id="task"></select></label></p>
<p><textarea id="text" rows="5" placeholder="one input a line"></textarea></p>
<p><label>or images: <input id="files" type="file" accept="image/*" multiple></label></p>
<p><button id="send">Send</button></p>
<pre id="answer"></pre>
<script>
const at = id => document.getElementById(id);
const headers = () => at("token").value ? { Authorization: "Bearer " + at("token").value } : {};
function row(values) {
  const line = document.createElement("tr");
  for (const value of values) line.appendChild(document.createElement("td")).textContent = value;
  return line;
}
async function reload() {
  const answer = await fetch("v1/tasks", { headers: headers() });
  const told = await answer.json();
  if (!answer.ok) { at("base").textContent = told.error.message; return; }
  at("base").textContent = "Base: " + told.base;
  at("tasks").replaceChildren(...told.tasks.map(task =>
    row([task.name, task.task, task.labels.join(", "), task.batches, task.memory_bytes])));
  at("task").replaceChildren(...told.tasks.map(task => new Option(task.name, task.name)));
  at("refused").replaceChildren(...told.refused.map(each => {
    const item = document.createElement("li"); item.textContent = each.name + ": " + each.error; return item; }));
}
at("reload").onclick = reload;
at("send").onclick = async () => {
  const files = at("files").files;
  let body, more = {};
  if (files.length) {
    body = new FormData(); body.append("task", at("task").value);
    for (const file of files) body.append("files", file);
  } else {
    const inputs = at("text").value.split("\\n").filter(line => line.trim());
    body = JSON.stringify({ task: at("task").value, inputs }); more = { "Content-Type": "application/json" };
  }
  const answer = await fetch("v1/predict", { method: "POST", headers: { ...headers(), ...more }, body });
  at("answer").textContent = JSON.stringify(await answer.json(), null, 1);
};
reload();
</script>
</html>
"""
