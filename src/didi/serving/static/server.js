// Requests to the server: the models it has, and streams of moves.

const TOKEN = "didi-token"; // kept as long as the tab, and never in a link

export function setToken(token) { sessionStorage.setItem(TOKEN, token); }

function authorization() {
  const token = sessionStorage.getItem(TOKEN);
  if (/[^\x20-\x7e]/.test(token ?? "")) throw needsToken("an access token has ASCII characters only: enter another one above");
  return token ? { authorization: `Bearer ${token}` } : {};
}

/** Networks as {model, role, length, nfe, samplers, takesText}: one for each role of each model. */
export async function networks() {
  const { data } = await (await checked(fetch("v1/models", { headers: authorization() }))).json();
  const cards = new Map(data.map((card) => [card.id, card]));
  const models = data.filter(({ id }) => !data.some((other) => other.roles.some((role) => id === `${other.id}:${role}`)));
  return models.flatMap((model) => model.roles.map((role) => {
    const card = cards.get(`${model.id}:${role}`) ?? model;
    return { model: model.id, role, length: card.length, nfe: card.nfe, samplers: card.samplers, takesText: card.takes_text ?? true };
  }));
}

/** Events of a generation as [name, data]. An `error` event, or an answer that is an error, is thrown. */
export async function* generation(request, signal) {
  const headers = { "content-type": "application/json", ...authorization() };
  const body = JSON.stringify({ ...request, stream: true });
  const response = await checked(fetch("v1/generate", { method: "POST", headers, body, signal }));
  let isWhole = false;
  for await (const [name, data] of events(response.body)) {
    if (name === "error") throw new Error(data.message);
    isWhole ||= name === "end";
    yield [name, data];
  }
  if (!isWhole) throw new Error("the server ended the stream before the text was finished");
}

/** An error after which the page shows the field for the token. */
const needsToken = (message) => Object.assign(new Error(message), { needsToken: true });

/** The answer, if its status says that it is one; else an error with the message of its body. */
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

/** Server-sent events of a body; comments and unnamed fields are left out. */
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
