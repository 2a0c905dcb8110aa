"""Slaves on a pty with the time of every byte kept, in a process of their own: `python rtu_farm.py BAUD SECONDS`.

11 bits a character; a reply begins 3.5 characters (1.75 ms above 19200 baud) after its request ended. The request's bytes
are taken to be on the wire for their time from the moment the first one is read. The reply is handed over in lots of
about a millisecond, its last byte never before its time. Prints `{"port": …}` first and what it saw at the end.
"""

import json
import os
import select
import sys
import time
import tty

BITS = 11
REGISTERS = 20


def crc16(data: bytes) -> bytes:
    register = 0xFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ 0xA001 if register & 1 else register >> 1
    return register.to_bytes(2, "little")


def wait_until(at_s: float) -> None:
    while (left_s := at_s - time.perf_counter()) > 0:
        if left_s > 0.0004:
            time.sleep(left_s - 0.0003)


def main(baud_rate: int, seconds: float) -> None:
    character_s = BITS / baud_rate
    gap_s = max(3.5 * character_s, 0.00175)
    master, slave = os.openpty()
    tty.setraw(slave)
    print(json.dumps({"port": os.ttyname(slave)}), flush=True)
    reply_end_s = first_s = last_s = 0.0
    gaps_s: list[float] = []
    answered = 0
    while True:
        limit_s = 30.0 if not first_s else max(0.0, first_s + seconds - time.perf_counter())
        if not select.select([master], [], [], limit_s)[0]:
            break
        now_s = time.perf_counter()
        request = os.read(master, 256)
        while len(request) < 8 and select.select([master], [], [], 0.1)[0]:
            request += os.read(master, 256)
        if first_s and now_s > first_s + seconds:
            break
        first_s = first_s or now_s
        last_s = now_s
        if reply_end_s:
            gaps_s.append(now_s - reply_end_s)
        assert crc16(request[:-2]) == request[-2:], request.hex()
        body = request[:2] + bytes((2 * REGISTERS,)) + b"\x43\x66\x80\x00" * (REGISTERS // 2)
        reply = body + crc16(body)
        start_s = now_s + 8 * character_s + gap_s
        lot = max(1, round(0.001 / character_s))
        for place in range(0, len(reply), lot):
            end = min(len(reply), place + lot)
            wait_until(start_s + end * character_s)
            os.write(master, reply[place:end])
        reply_end_s = start_s + len(reply) * character_s
        answered += 1
    period_s = (8 + len(reply)) * character_s + 2 * gap_s
    print(
        json.dumps(
            {
                "polls_per_s": (answered - 1) / (last_s - first_s),
                "limit_per_s": 1 / period_s,
                "shortest_gap_in_characters": min(gaps_s) / character_s,
                "shortest_gap_of_what_is_asked": min(gaps_s) / gap_s,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
