// A robot's session from a web page: `router-robot/1` in a WebTransport session. What goes over the wire is ../PROTOCOL.md.
//
//   const robot = await RobotSession.connect("https://router.example/arm", { headers: [["authorization", "Bearer …"]] });
//   robot.sendState(observation, { withinMs: 100 });              // newest wins
//   await robot.sendCommand("stop");                              // ordered, nothing lost
//   for await (const { data, lane, sequence, epoch } of robot) …  // ends when the session does
//   await robot.close();
//
// States that nobody took out yet are replaced by newer ones; commands wait, and the router waits for them. Times are
// the page's clock in microseconds. No part of this polls, and none needs a library.

const HELLO = 1, PING = 2, PONG = 3, LINK = 4, BYE = 5, WELCOME = 0x11, REFUSED = 0x12, EPOCH = 0x13, TOKEN = 0x15;
const HEARD = new Set([PING, PONG, WELCOME, REFUSED, EPOCH, TOKEN]);
const COMMAND = 0x43, STATE = 0x53, STALE = 1, TEXT = 1n;
const MAX_FRAME_BYTES = 16_384; // of a control frame
const MAX_UNDER_WAY = 8; // states sent and not acknowledged; the oldest is given up for a ninth
const MAX_COMMANDS = 64; // replies that wait to be taken out, before the lane is read no further
const PING_MS = 1_000, LOST_MS = 4_000, MAX_ASKED = 100, BYE_MS = 2_000;

const utf8 = new TextEncoder();
const text = new TextDecoder("utf-8", { fatal: true });
const nowUs = () => Math.round(performance.now() * 1_000);
const deadlineIn = (ms) => (ms ? Math.max(1, nowUs() + Math.round(ms * 1_000)) : 0);

/** The end of a session: `code` is WebSocket's, `status` HTTP's where the router refused. */
export class RobotError extends Error {
  constructor(code, message, status = 0, retryAfterS = 0) {
    super(message || `closed (${code})`);
    Object.assign(this, { name: "RobotError", code, status, retryAfterS });
  }
}

export class RobotSession {
  /**
   * Resolves when a replica is there. `headers`: pairs, as a request's; `replies`: the lane that answers come on,
   * "state" or "command"; `certificateHashes`: SHA-256 of certificates to trust (ArrayBuffers), which then have to be
   * younger than two weeks and have an ECDSA key; `resume`: the `token` of a session that was lost, which then goes on.
   */
  static async connect(url, options = {}) {
    const { headers = [], certificateHashes = [], replies = "state", resume = "", maxMessageBytes = 1 << 24 } = options;
    const serverCertificateHashes = certificateHashes.map((value) => ({ algorithm: "sha-256", value }));
    const transport = new WebTransport(url, { serverCertificateHashes, protocols: ["router-robot/1"] });
    const session = new RobotSession(transport, maxMessageBytes);
    try {
      await session.#begin({ headers, replies, resume });
    } catch (error) {
      session.#end(error);
      throw session.error;
    }
    return session;
  }

  /** What the session has seen: `rttMs` smoothed, `loss` a share of 1, and counts. */
  link = { rttMs: 0, jitterMs: 0, loss: 0, answered: 0, lost: 0, late: 0, stale: 0, replies: 0, largestGapMs: 0 };
  epoch = 0; // which replica of the session it is, as far as the router's word of it has come
  replica = "";
  session = "";
  token = ""; // to `resume` with, for half an hour at least; another may come while the session lasts
  error = null; // once it is over
  closed = null; // a promise of `error`

  #transport; #isOver = false; #maxMessageBytes; #control; #command; #datagrams;
  #welcome = Promise.withResolvers(); #over = Promise.withResolvers();
  #sequence = 0; #sending = null; #waiting = null; #gaveUp = false; #underWay = new Set();
  #newest = 0; #readers = new Map(); #state = null; #commands = []; #commandNumber = 0; #taker = null; #room = null;
  #asked = new Map(); #pings = 0; #outcomes = []; #timer = 0; #lastReply = 0; #gapMs = 0;

  constructor(transport, maxMessageBytes) {
    this.#transport = transport;
    this.#maxMessageBytes = maxMessageBytes;
    this.closed = this.#over.promise;
    this.#welcome.promise.catch(() => {});
    transport.ready.catch(() => {});
    const over = (error) => {
      this.#isOver = true;
      this.#end(error);
    };
    transport.closed.then(
      ({ closeCode, reason }) => over(new RobotError(closeCode || 1_000, reason)),
      (error) => over(new RobotError(1_006, String(error))),
    );
  }

  async #begin(hello) {
    const transport = this.#transport;
    await transport.ready;
    const control = await transport.createBidirectionalStream();
    const command = await transport.createBidirectionalStream();
    this.#control = control.writable.getWriter();
    this.#command = command.writable.getWriter();
    this.#datagrams = transport.datagrams.writable.getWriter();
    const failed = (error) => this.#fail(error);
    this.#readControl(control.readable).catch(failed);
    this.#readCommands(command.readable).catch(failed);
    this.#readStates(transport.incomingUnidirectionalStreams).catch(failed);
    this.#readDatagrams(transport.datagrams.readable).catch(failed);
    // Behind both streams: Chromium 156 may crash where a session is closed while one is being opened.
    this.#command.write(Uint8Array.of(COMMAND)).catch(() => {});
    this.#say(HELLO, hello);
    await this.#welcome.promise;
    this.#timer = setInterval(() => this.#tick(), PING_MS);
    this.#ask();
  }

  // -- sending -------------------------------------------------------------------------------------------------

  /** Send a state, whose older ones are given up where they have not left yet. `withinMs`: of no use later. */
  sendState(data, { withinMs = 0 } = {}) {
    this.#check();
    if (this.#waiting) this.link.stale += 1;
    this.#waiting = { data: bytes(data), deadline: deadlineIn(withinMs) };
    if (this.#sending && !this.#gaveUp) {
      this.#gaveUp = true; // but never two in a row: else a slow link would deliver none
      this.#giveUp(this.#sending);
    }
    this.#sendWaiting();
  }

  /** Send a command; resolves when the browser has taken it. Text if it is a string. */
  sendCommand(data, { withinMs = 0 } = {}) {
    this.#check();
    const payload = bytes(data);
    const deadline = deadlineIn(withinMs);
    const head = join(varint(payload.length), varint(typeof data === "string" ? 1 : 0), varint(deadline));
    return this.#command.write(join(head, payload));
  }

  /** Say goodbye: commands are delivered first. */
  async close() {
    if (!this.error) {
      const late = new Promise((resolve) => setTimeout(resolve, BYE_MS));
      await Promise.race([this.#command.close().catch(() => {}), late]);
      this.#say(BYE, {});
      await Promise.race([this.closed, late]);
      if (!this.error) this.#close(1_000);
    }
    return this.closed;
  }

  async #sendWaiting() {
    if (this.#sending || !this.#waiting || this.error) return;
    const { data, deadline } = this.#waiting;
    this.#waiting = null;
    if (deadline && deadline <= nowUs()) {
      this.link.late += 1;
      return;
    }
    const message = (this.#sending = { writer: null, isGivenUp: false });
    try {
      const stream = await this.#transport.createUnidirectionalStream();
      message.writer = stream.getWriter();
      message.writer.closed.catch(() => {});
      if (!message.isGivenUp) {
        this.#sequence += 1;
        await message.writer.write(join(Uint8Array.of(STATE), varint(this.#sequence), varint(deadline), data));
      }
      if (message.isGivenUp) {
        message.writer.abort(new WebTransportError({ streamErrorCode: STALE })).catch(() => {});
      } else {
        this.#gaveUp = false;
        this.#leave(message);
      }
    } catch {
      // given up, stopped by the router for a newer one, or the session is over, which `closed` tells
    }
    this.#sending = null;
    this.#sendWaiting();
  }

  #leave(message) {
    this.#underWay.add(message);
    const gone = () => this.#underWay.delete(message);
    message.writer.close().then(gone, gone);
    if (this.#underWay.size > MAX_UNDER_WAY) {
      const [oldest] = this.#underWay;
      this.#underWay.delete(oldest);
      this.#giveUp(oldest);
    }
  }

  #giveUp(message) {
    message.isGivenUp = true;
    this.link.stale += 1;
    message.writer?.abort(new WebTransportError({ streamErrorCode: STALE })).catch(() => {});
  }

  #say(kind, body) {
    const packed = pack(body);
    this.#control.write(join(varint(kind), varint(packed.length), packed)).catch(() => {});
  }

  // -- receiving -----------------------------------------------------------------------------------------------

  async *[Symbol.asyncIterator]() {
    for (;;) {
      const found = this.#commands.shift() ?? this.#takeState();
      if (found) {
        this.#room?.resolve();
        yield found;
      } else if (this.error) {
        return;
      } else {
        this.#taker = Promise.withResolvers();
        await this.#taker.promise;
      }
    }
  }

  #takeState() {
    const found = this.#state;
    this.#state = null;
    return found;
  }

  #offer(message) {
    const now = performance.now();
    if (this.#lastReply) this.#gapMs = Math.max(this.#gapMs, now - this.#lastReply);
    this.link.largestGapMs = Math.max(this.link.largestGapMs, this.#gapMs);
    this.#lastReply = now;
    this.link.replies += 1;
    if (message.lane === "command") {
      this.#commands.push(message);
    } else {
      if (this.#state) this.link.stale += 1;
      this.#state = message;
    }
    this.#taker?.resolve();
  }

  async #readStates(streams) {
    for await (const stream of streams) this.#readState(stream).catch(() => (this.link.stale += 1));
  }

  async #readState(stream) {
    const input = new Input(stream);
    const own = { input, sequence: 0 };
    this.#readers.set(input, own);
    try {
      if ((await input.byte()) !== STATE) throw new RobotError(1_002, "a stream that is no state");
      const sequence = (own.sequence = Number(await input.varint()));
      await input.varint(); // replies have no deadline
      const data = await input.rest(this.#maxMessageBytes);
      if (sequence <= this.#newest) {
        this.link.stale += 1;
        return;
      }
      this.#newest = sequence;
      this.#offer({ data, lane: "state", sequence, epoch: this.epoch });
      for (const other of this.#readers.values()) {
        if (other.sequence && other.sequence < sequence) other.input.cancel(STALE);
      }
    } finally {
      this.#readers.delete(input);
    }
  }

  async #readCommands(stream) {
    const input = new Input(stream);
    while (await input.more()) {
      const size = Number(await input.varint());
      const isText = (await input.varint()) === TEXT;
      await input.varint();
      if (size > this.#maxMessageBytes) throw new RobotError(1_009, "a message is too large");
      const data = await input.take(size);
      this.#commandNumber += 1;
      const whole = isText ? text.decode(data) : data;
      this.#offer({ data: whole, lane: "command", sequence: this.#commandNumber, epoch: this.epoch });
      while (this.#commands.length >= MAX_COMMANDS) {
        this.#room = Promise.withResolvers();
        await this.#room.promise;
      }
    }
  }

  async #readControl(stream) {
    const input = new Input(stream);
    while (await input.more()) {
      const kind = Number(await input.varint());
      const size = Number(await input.varint());
      if (size > MAX_FRAME_BYTES) throw new RobotError(1_009, "a control frame is too large");
      const packed = await input.take(size);
      if (HEARD.has(kind)) this.#hear(kind, unpack(packed));
    }
  }

  #hear(kind, body) {
    if (kind === PING) {
      this.#say(PONG, { n: body.n, t: body.t, r: nowUs(), s: nowUs() });
    } else if (kind === PONG) {
      this.#answered(body);
    } else if (kind === REFUSED) {
      this.#end(new RobotError(1_008, body.message || body.code, body.status ?? 0, body.retry_after_s ?? 0));
    } else {
      this.token = body.token || this.token;
      if (kind === TOKEN) return;
      this.epoch = body.epoch;
      this.replica = body.replica ?? "";
      if (kind === WELCOME) {
        this.session = body.session;
        this.#welcome.resolve();
      }
    }
  }

  async #readDatagrams(stream) {
    const reader = stream.getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      if (value[0] === PING) this.#post(PONG, this.#pong(unpack(value.subarray(1))));
      else if (value[0] === PONG) this.#answered(unpack(value.subarray(1)));
    }
  }

  // -- the link ------------------------------------------------------------------------------------------------

  #pong({ n, t }) {
    return { n, t, r: nowUs(), s: nowUs() };
  }

  #post(kind, body) {
    this.#datagrams.write(join(Uint8Array.of(kind), pack(body))).catch(() => {});
  }

  /** Ask for a round trip, by a datagram; resolves to milliseconds, or NaN if it was lost. Once a second by itself. */
  ping() {
    this.#check();
    return this.#ask();
  }

  #ask() {
    const n = (this.#pings += 1);
    const t = nowUs();
    const asked = Promise.withResolvers();
    this.#asked.set(n, { t, resolve: asked.resolve });
    if (this.#asked.size > MAX_ASKED) this.#lose(this.#asked.keys().next().value);
    this.#post(PING, { n, t });
    return asked.promise;
  }

  #answered({ n, t, r, s }) {
    const asked = this.#asked.get(n);
    if (!asked || asked.t !== t) return;
    this.#asked.delete(n);
    const roundTripMs = Math.max(0, nowUs() - t - (s - r)) / 1_000;
    const link = this.link;
    if (link.answered) {
      link.jitterMs += (Math.abs(roundTripMs - link.rttMs) - link.jitterMs) / 16;
      link.rttMs += (roundTripMs - link.rttMs) / 8;
    } else {
      link.rttMs = roundTripMs;
    }
    link.answered += 1;
    this.#note(0);
    asked.resolve(roundTripMs);
  }

  #lose(n) {
    const asked = this.#asked.get(n);
    this.#asked.delete(n);
    this.link.lost += 1;
    this.#note(1);
    asked.resolve(NaN);
  }

  #note(isLost) {
    this.#outcomes.push(isLost);
    if (this.#outcomes.length > MAX_ASKED) this.#outcomes.shift();
    this.link.loss = this.#outcomes.reduce((sum, one) => sum + one, 0) / this.#outcomes.length;
  }

  #tick() {
    for (const [n, { t }] of this.#asked) if (nowUs() - t > LOST_MS * 1_000) this.#lose(n);
    this.#ask();
    const { rttMs, jitterMs, loss, late, stale } = this.link;
    const us = (ms) => Math.round(ms * 1_000);
    const gap_us = us(this.#gapMs);
    this.#gapMs = 0;
    this.#say(LINK, { rtt_us: us(rttMs), loss_ppm: Math.round(loss * 1e6), jitter_us: us(jitterMs), gap_us, late, stale });
  }

  // -- the end -------------------------------------------------------------------------------------------------

  #check() {
    if (this.error) throw this.error;
  }

  /** A reader has ended in a fault: ours to name if it is the protocol's, else the session's end says why. */
  #fail(error) {
    if (error instanceof RobotError) {
      this.#end(error);
    } else if (!(error instanceof WebTransportError)) {
      this.#end(new RobotError(1_002, String(error)));
    }
  }

  #end(error) {
    if (this.error) return;
    this.error = error instanceof RobotError ? error : new RobotError(1_006, String(error));
    clearInterval(this.#timer);
    for (const n of [...this.#asked.keys()]) this.#lose(n);
    this.#welcome.reject(this.error);
    this.#over.resolve(this.error);
    this.#taker?.resolve();
    this.#room?.resolve();
    this.#close(this.error.code);
  }

  #close(closeCode) {
    if (!this.#isOver) this.#transport.close({ closeCode, reason: "" });
  }
}

/** What a stream brings, as integers and pieces of a length. */
class Input {
  #reader; #pieces = []; #size = 0;

  constructor(stream) {
    this.#reader = stream.getReader();
  }

  /** Whether anything follows. */
  async more() {
    return this.#size > 0 || this.#pull();
  }

  async #pull() {
    const { value, done } = await this.#reader.read();
    if (done) return false;
    this.#pieces.push(value);
    this.#size += value.length;
    return true;
  }

  async take(size) {
    while (this.#size < size) if (!(await this.#pull())) throw new RobotError(1_002, "a stream ends too soon");
    const all = this.#pieces.length === 1 ? this.#pieces[0] : join(...this.#pieces);
    this.#pieces = size < all.length ? [all.subarray(size)] : [];
    this.#size -= size;
    return all.subarray(0, size);
  }

  async byte() {
    return (await this.take(1))[0];
  }

  /** An integer of QUIC (RFC 9000 §16), as a BigInt. */
  async varint() {
    const first = await this.byte();
    let value = BigInt(first & 0x3f);
    for (const byte of await this.take((1 << (first >> 6)) - 1)) value = (value << 8n) | BigInt(byte);
    return value;
  }

  async rest(limit) {
    while (await this.#pull()) if (this.#size > limit) throw new RobotError(1_009, "a message is too large");
    return this.take(this.#size);
  }

  cancel(code) {
    this.#reader.cancel(new WebTransportError({ streamErrorCode: code })).catch(() => {});
  }
}

function bytes(data) {
  if (typeof data === "string") return utf8.encode(data);
  return ArrayBuffer.isView(data) ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength) : new Uint8Array(data);
}

function join(...parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}

export function varint(value) {
  const size = value < 0x40 ? 1 : value < 0x4000 ? 2 : value < 0x40000000 ? 4 : 8;
  const whole = new Uint8Array(size);
  let rest = BigInt(value);
  for (let at = size - 1; at >= 0; at -= 1, rest >>= 8n) whole[at] = Number(rest & 0xffn);
  whole[0] |= Math.log2(size) << 6;
  return whole;
}

/** msgpack as far as control frames need it: maps of strings, integers that are not negative, arrays, true and false. */
export function pack(value) {
  if (typeof value === "number") {
    if (value < 0x80) return Uint8Array.of(value);
    const view = new DataView(new ArrayBuffer(9));
    view.setUint8(0, 0xcf);
    view.setBigUint64(1, BigInt(value));
    return new Uint8Array(view.buffer);
  }
  if (typeof value === "boolean") return Uint8Array.of(value ? 0xc3 : 0xc2);
  if (typeof value === "string") {
    const data = utf8.encode(value);
    return join(Uint8Array.of(0xda, data.length >> 8, data.length & 0xff), data);
  }
  if (Array.isArray(value)) {
    return join(Uint8Array.of(0xdc, value.length >> 8, value.length & 0xff), ...value.map(pack));
  }
  const pairs = Object.entries(value);
  return join(Uint8Array.of(0xde, pairs.length >> 8, pairs.length & 0xff), ...pairs.flat().map(pack));
}

/** The other way; all that a router may say, and nil, negative and fractional numbers and bytes beside. */
export function unpack(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  let at = 0;
  const number = (size, name) => ((at += size), view[name](at - size));
  const big = (name) => Number(number(8, name));
  const slice = (size) => {
    if (at + size > data.length) throw new RangeError("msgpack ends too soon");
    return data.subarray((at += size) - size, at);
  };
  const string = (size) => text.decode(slice(size));
  const array = (size) => Array.from({ length: size }, next);
  const map = (size) => Object.fromEntries(Array.from({ length: size }, () => [next(), next()]));
  const readers = {
    0xc0: () => null, 0xc2: () => false, 0xc3: () => true,
    0xc4: () => slice(number(1, "getUint8")), 0xc5: () => slice(number(2, "getUint16")),
    0xca: () => number(4, "getFloat32"), 0xcb: () => number(8, "getFloat64"),
    0xcc: () => number(1, "getUint8"), 0xcd: () => number(2, "getUint16"), 0xce: () => number(4, "getUint32"),
    0xcf: () => big("getBigUint64"), 0xd0: () => number(1, "getInt8"), 0xd1: () => number(2, "getInt16"),
    0xd2: () => number(4, "getInt32"), 0xd3: () => big("getBigInt64"),
    0xd9: () => string(number(1, "getUint8")), 0xda: () => string(number(2, "getUint16")),
    0xdc: () => array(number(2, "getUint16")), 0xde: () => map(number(2, "getUint16")),
  };
  function next() {
    const first = number(1, "getUint8");
    if (first < 0x80) return first;
    if (first < 0x90) return map(first & 0xf);
    if (first < 0xa0) return array(first & 0xf);
    if (first < 0xc0) return string(first & 0x1f);
    if (first >= 0xe0) return first - 0x100;
    if (!readers[first]) throw new RangeError(`msgpack of type ${first}`);
    return readers[first]();
  }
  return next();
}
