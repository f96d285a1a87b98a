"""The live page: it asks for the state twice a second and shows it. Every text is set as text, never as markup."""

from __future__ import annotations

HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>openmath solve</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="page.css"></head><body>
<h1>openmath solve</h1>
<form id="ask"><label for="problem">Problem</label><textarea id="problem" rows="3" maxlength="100000"></textarea>
<button>Solve</button> <span id="said" role="status"></span></form>
<section aria-label="clock"><p><b>Clock</b> <span id="clock">no problem is being solved</span>
<progress id="time" max="1" value="0"></progress></p>
<p><b>Bank</b> <span id="bank"></span> &middot; <b>Waiting</b> <span id="waiting">0</span></p></section>
<p id="text"></p><ol id="solutions"></ol>
<h2>Answers</h2><div class="wide" tabindex="0" role="region" aria-label="Answers"><table>
<thead><tr><th>problem</th><th>answer</th><th>votes</th><th>seconds</th><th>ended by</th></tr>
</thead><tbody id="answered"></tbody></table></div>
<script src="page.js"></script></body></html>
"""

CSS = """body{font:16px/1.4 system-ui,sans-serif;max-width:56rem;margin:1.5rem auto;padding:0 1rem;color:#1b1f24}
h1{font-size:1.3rem}h2{font-size:1.1rem}textarea{width:100%;font:inherit;box-sizing:border-box}label{font-weight:600}
button{font:inherit;padding:.2rem .9rem}progress{width:100%}
#text{white-space:pre-wrap;overflow-wrap:anywhere;background:#f4f5f7;padding:.5rem;max-height:12rem;overflow:auto}
#text:empty{display:none}#solutions{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:.4rem;
list-style:none;padding:0}#solutions li{border:1px solid #c8ccd2;border-left:.4rem solid #8a94a3;padding:.3rem .5rem;
overflow-wrap:anywhere}#solutions li.ended{border-left-color:#1a7f37}#solutions li.lost{border-left-color:#b42318}
#solutions li.cut{border-left-color:#b26a00}.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #d8dce1;overflow-wrap:anywhere;
vertical-align:top}th,td:nth-child(n+3){white-space:nowrap}
"""

JS = """'use strict';
const at = id => document.getElementById(id);
function element(name, text, kind) {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function show(state) {
  const now = state.current, bank = state.bank;
  at('bank').textContent = bank.saved.toFixed(0) + ' s saved, a problem has ' + bank.base + ' s and up to '
    + bank.most + ' s more';
  at('waiting').textContent = state.waiting;
  at('clock').textContent = now ? now.seconds.toFixed(1) + ' of ' + now.allowed.toFixed(1) + ' s'
    + (now.reason ? ', sampling ended: ' + now.reason : '') : 'no problem is being solved';
  at('time').value = now && now.allowed ? Math.min(1, now.seconds / now.allowed) : 0;
  at('text').textContent = now ? now.problem : '';
  at('solutions').replaceChildren(...(now ? now.solutions : []).map(one => element('li',
    '#' + one.sample + ' ' + one.state + (one.state === 'runs' ? ', ' + one.written + ' characters: ' + one.end
    : ' at ' + one.at.toFixed(1) + ' s, ' + one.tokens + ' tokens') + (one.answer === null ? '' : ': ' + one.answer),
    one.state.split(' ')[0])));
  at('answered').replaceChildren(...state.answered.map(one => {
    const row = document.createElement('tr');
    const cells = [one.problem, one.answer === null ? 'no answer' : one.answer, one.votes + ' of ' + one.finished,
      one.seconds.toFixed(1) + ' of ' + one.allowed.toFixed(1), one.reason];
    row.replaceChildren(...cells.map(text => element('td', text)));
    return row;
  }));
}
async function look() {
  try {
    show(await (await fetch('state')).json());
  } catch (error) {
    at('clock').textContent = 'the server does not answer';
  }
  setTimeout(look, 500);
}
at('ask').addEventListener('submit', async event => {
  event.preventDefault();
  at('said').textContent = 'asked';
  try {
    const reply = await fetch('solve', {method: 'POST', headers: {'Content-Type': 'application/json'},
      body: JSON.stringify({problem: at('problem').value})});
    const body = await reply.json();
    at('said').textContent = reply.ok ? 'answer: ' + (body.answer === null ? 'none' : body.answer) : body.error;
  } catch (error) {
    at('said').textContent = 'the server does not answer';
  }
});
look();
"""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The page may load its own script and style, and ask this server; nothing else."""
