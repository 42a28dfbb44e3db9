// The four kinds of call by grpc-js, a gRPC client that shares no code with grpcio. Prints one line of JSON.
// node grpc_js_client.js HOST:PORT [CA_FILE]
const fs = require("fs");
const grpc = require("@grpc/grpc-js");

const raw = (bytes) => bytes;
const method = (name, requestStream, responseStream) => ({
  path: `/kit.Kit/${name}`, requestStream, responseStream,
  requestSerialize: raw, requestDeserialize: raw, responseSerialize: raw, responseDeserialize: raw,
});
const Kit = grpc.makeGenericClientConstructor({
  unary: method("Unary", false, false), clientStream: method("ClientStream", true, false),
  serverStream: method("ServerStream", false, true), bidi: method("Bidi", true, true),
}, "kit.Kit");

const [, , target, ca] = process.argv;
const credentials = ca ? grpc.credentials.createSsl(fs.readFileSync(ca)) : grpc.credentials.createInsecure();
const client = new Kit(target, credentials, { "grpc.enable_http_proxy": 0 });
const metadata = (entries) => {
  const made = new grpc.Metadata();
  for (const [name, value] of Object.entries(entries)) made.set(name, value);
  return made;
};
const unary = (body, entries, options) => new Promise((resolve) => {
  let trailers = {};
  const call = client.unary(Buffer.from(body), metadata(entries), options || {}, (error, reply) => {
    setImmediate(() => resolve({ code: error ? error.code : 0, details: error ? error.details : "",
      reply: reply ? reply.toString() : null, trailers }));
  });
  call.on("status", (status) => { trailers = status.metadata.getMap(); });
});
const collect = (call) => new Promise((resolve, reject) => {
  const messages = [];
  call.on("data", (message) => messages.push(message.toString()));
  call.on("end", () => resolve(messages));
  call.on("error", reject);
});

(async () => {
  const found = {};
  found.unary = await unary("hello", { "kit-trailing-x": "y" });
  found.failed = await unary("", { "kit-status": "5", "kit-message": "no such thing" });
  found.late = await unary("", { "kit-sleep-ms": "20000" }, { deadline: Date.now() + 300 });
  found.many = (await Promise.all([...Array(200).keys()].map((i) => unary(`n${i}`, {})))).filter((r, i) => r.reply === `n${i}`).length;
  found.big = (await unary("z".repeat(3000000), {})).reply.length;
  found.serverStream = await collect(client.serverStream(Buffer.from("s"), metadata({ "kit-count": "4" })));
  found.clientStream = await new Promise((resolve, reject) => {
    const call = client.clientStream((error, reply) => (error ? reject(error) : resolve(JSON.parse(reply.toString()))));
    for (let i = 0; i < 50; i++) call.write(Buffer.alloc(20000));
    call.end();
  });
  const bidi = client.bidi();
  const echoes = collect(bidi);
  for (const word of ["a", "b", "c"]) bidi.write(Buffer.from(word));
  bidi.end();
  found.bidi = await echoes;
  console.log(JSON.stringify(found));
  client.close();
})().catch((error) => { console.error(error); process.exit(1); });
