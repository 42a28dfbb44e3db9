"""A router's tunnel by lanes at one end of the rig, the replica's sidecar with a played engine at the other."""

from router.continuity import Continuity
from router.stream import HOLD_PEER_FULL, RequestReceiver, ResponseReceiver
from router.transport.codec.message_tunnel import MessageTunnel, TunnelOwner
from router.transport.codec.robot.lane_stream import LaneStream
from tests.transport.codec.quic.rig import SERVER
from tests.transport.codec.robot.clientkit import TimedClient
from tests.transport.codec.robot.robotkit import Robot


class Between(RequestReceiver, ResponseReceiver):
    """What an exchange does once it has its streams: hands everything on."""

    def __init__(self, tunnel):
        self.tunnel = tunnel
        self.stream = None
        self.head = None
        self.paused = []  # whether the client was to stop, in order
        self.error = None

    def upstream_ready(self, stream):
        self.stream = stream
        stream.send_head(self.head, False)

    def request_head(self, head, end):
        self.head = head

    def request_data(self, data, end):
        self.stream.send_data(data, end)

    def request_datagram(self, data):
        return self.stream.send_datagram(data)

    def request_reset(self, error):
        self.stream.reset(error)

    def pause_response(self):
        self.stream.hold(HOLD_PEER_FULL)

    def resume_response(self):
        self.stream.release(HOLD_PEER_FULL)

    def response_head(self, head, end):
        self.tunnel.send_head(head, end)

    def response_data(self, data, end):
        self.tunnel.send_data(data, end)

    def response_reset(self, error):
        self.error = error
        self.tunnel.reset(error)

    def pause_request(self):
        self.paused.append(True)
        self.tunnel.hold(HOLD_PEER_FULL)

    def resume_request(self):
        self.paused.append(False)
        self.tunnel.release(HOLD_PEER_FULL)


class Lanes(Robot, TunnelOwner):
    """`tunnel` is what a robot's session in the router has; `session` and `replicas` are the sidecar's."""

    def __init__(self, *args, headers=(), path=b"/p", **kwargs):
        super().__init__(*args, **kwargs)
        self.is_open = False
        self.is_reading = True
        self.refused_code = ""
        self.heard_messages, self.refused, self.closed = [], None, None
        self.continuity = Continuity()
        self.tunnel = MessageTunnel(self, 1 << 24, self.continuity)
        self.between = Between(self.tunnel)
        error = self.tunnel.open(lambda _: self.between, b"robots.test", path, list(headers), b"ROBOT/1")
        assert error is None
        self.client.make_app = self._make_stream
        self.client.connection = TimedClient(self.config, self.client, self.now, SERVER)

    def _make_stream(self, bearer):
        stream = LaneStream(bearer, self.between, "the ticket", self.now)
        self.between.upstream_ready(stream)
        return stream.application

    @property
    def stream(self):
        return self.between.stream

    def opened(self):
        assert self.run(lambda: self.is_open)
        return self

    def send_state(self, data, within_s=0.0):
        deadline = int((self.now + within_s) * 1e6) if within_s else 0
        self.tunnel.send(data, is_state=True, deadline=deadline)

    def send_command(self, data, *, is_text=False):
        self.tunnel.send(data, is_text=is_text)

    # -- the owner ------------------------------------------------------------------------------------

    def tunnel_open(self, head):
        self.is_open = True

    def tunnel_message(self, data, is_text, lane):
        self.heard_messages.append((lane, data.decode() if is_text else data))
        if not self.is_reading:
            self.tunnel.pause()

    def tunnel_refused(self, status, code, retry_after_s, body):
        self.refused = status, retry_after_s, body
        self.refused_code = code

    def tunnel_closed(self, code, reason):
        self.closed = code, reason, self.tunnel.failure

    def tunnel_ready(self):
        pass

    def touch(self):
        pass
