import socket
from threading import Thread

import httpcore
import pytest

from fedround.common.wire import MIN_RATE
from fedround.http import deadlines
from fedround.http.deadlines import Backend, Deadline, within


def test_each_step_of_an_exchange_has_its_time_out() -> None:
    now = 100.0
    deadline = Deadline(5.0, clock=lambda: now)
    now += 4
    assert (deadline.left(), deadline.left(0.5)) == (1, 0.5)
    deadline.next_step()
    assert deadline.left(60.0) == 5


def test_a_body_at_the_minimum_rate_is_in_time_without_credit_for_earlier_bytes() -> None:
    now = 100.0
    deadline = Deadline(5.0, clock=lambda: now)
    for _ in range(100):
        now += 1
        deadline.moved(int(MIN_RATE))
        assert deadline.left() > 0
    deadline.moved(1 << 30)
    now += 6
    deadline.moved(1)
    assert deadline.left() < 0


def test_a_stream_outside_of_an_exchange_has_its_own_time_outs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stream = Backend().connect_tcp("127.0.0.1", server.getsockname()[1], timeout=5.0)
        deadlines.moved(1)
        deadlines.next_step()
        with pytest.raises(httpcore.ReadTimeout):
            stream.read(1, timeout=0.01)
        stream.close()


def test_after_the_deadline_no_step_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        stream = Backend().connect_tcp(host, port)
        with within(0.0):
            with pytest.raises(httpcore.ConnectTimeout, match="takes too long"):
                Backend().connect_tcp(host, port)
            with pytest.raises(httpcore.WriteTimeout, match="takes too long"):
                stream.write(b"x")
            with pytest.raises(httpcore.ReadTimeout, match="takes too long"):
                stream.read(1)
        stream.close()


def test_written_data_arrives_completely() -> None:
    sent, came = bytes(range(256)) * 2000, bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def receive() -> None:
            connection, _ = server.accept()
            with connection:
                while chunk := connection.recv(1 << 16):
                    came.extend(chunk)

        reader = Thread(target=receive)
        reader.start()
        with within(30.0):
            stream = Backend().connect_tcp(*server.getsockname())
            stream.write(sent)
            stream.close()
        reader.join()
    assert came == sent
