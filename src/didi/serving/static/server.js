// Requests to the server: the list of models, and streams of moves.

const TOKEN = "didi-token"; // key of the session storage: the token is kept until the tab is closed, and is never part of a link

export function setToken(token) { sessionStorage.setItem(TOKEN, token); }

function authorization() {
  const token = sessionStorage.getItem(TOKEN);
  if (/[^\x20-\x7e]/.test(token ?? "")) throw needsToken("an access token has ASCII characters only: enter another one above");
  return token ? { authorization: `Bearer ${token}` } : {};
}

/** The networks, one for each role of each model, as {model, role, length, nfe, samplers, takesText}. */
export async function networks() {
  const { data } = await (await checked(fetch("v1/models", { headers: authorization() }))).json();
  const cards = new Map(data.map((card) => [card.id, card]));
  const models = data.filter(({ id }) => !data.some((other) => other.roles.some((role) => id === `${other.id}:${role}`)));
  return models.flatMap((model) => model.roles.map((role) => {
    const card = cards.get(`${model.id}:${role}`) ?? model;
    return { model: model.id, role, length: card.length, nfe: card.nfe, samplers: card.samplers, takesText: card.takes_text ?? true };
  }));
}

/** Events of a generation as [name, data]. Throws an Error for an `error` event or an error status. */
export async function* generation(request, signal) {
  const headers = { "content-type": "application/json", ...authorization() };
  const body = JSON.stringify({ ...request, stream: true });
  const response = await checked(fetch("v1/generate", { method: "POST", headers, body, signal }));
  let hasEnded = false;
  for await (const [name, data] of events(response.body)) {
    if (name === "error") throw new Error(data.message);
    hasEnded ||= name === "end";
    yield [name, data];
  }
  if (!hasEnded) throw new Error("the server ended the stream before the text was finished");
}

/** An error after which the page shows the field for the token. */
const needsToken = (message) => Object.assign(new Error(message), { needsToken: true });

/** The response of a request. Throws an Error with the message of the body if the status is an error. */
async function checked(request) {
  const response = await request.catch((error) => {
    throw error.name === "AbortError" ? error : new Error("the server does not answer: start it again with didi serve");
  });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) {
    const isMissing = body.error?.code === "missing_token";
    throw needsToken(isMissing ? "this server needs its access token: enter it above" : "the access token is wrong: enter another one above");
  }
  throw new Error(body.error?.message ?? body.message ?? `the server answered with status ${response.status}`);
}

/** Server-sent events of a body as [name, data]; comments are skipped. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split(/\r?\n/).map((line) => /^(\w*): ?(.*)$/.exec(line)?.slice(1) ?? ["", ""]));
      if (fields.data) yield [fields.event, JSON.parse(fields.data)];
    }
  }
}
