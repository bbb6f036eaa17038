"""``make bench``."""
from __future__ import annotations
import argparse
from pathlib import Path
from benchmarks.load import Load
from benchmarks.stack import Stack
from benchmarks.throughput import Floods, Lane, UNPACED, profilers
from benchmarks.profiler import summary

p=argparse.ArgumentParser()
p.add_argument("--profile",action="append",default=[]); p.add_argument("--native",action="store_true")
p.add_argument("--rounds",type=int,default=3); p.add_argument("--seconds",type=float,default=4)
o=p.parse_args()
with Stack() as stack, Load() as load:
    f=Floods(stack,seconds=o.seconds,warm=1)
    lanes=[Lane("raw",load,stack.direct),Lane("tailrace",load,stack.tailrace)]
    for i in range(o.rounds):
        for l in lanes:
            r=f.run(l)
            print(l.name, round(r.flooded.streams_per_second,1), "streams/s", r.flooded.per_stream, "chunks", "broken",r.flooded.broken, r.flooded.complaint[:200],
              "us/chunk:", {k: round(r.per_chunk(v)*1e6,1) for k,v in r.spent.cpu.items()}, "entries/chunk", r.entries,
              "requests/chunk", round(r.per_chunk(r.spent.requests),2), "calls/chunk", round(r.per_chunk(sum(r.spent.calls.values())),2), "bytes in/out", round(r.per_chunk(r.spent.bytes_in)), round(r.per_chunk(r.spent.bytes_out)), flush=True)
    print("ratio", f.ratio("tailrace","raw"))
    if o.profile:
        r=f.run(Lane("profiled",load,stack.tailrace,share=3), profile=profilers(stack,o.profile,Path(".bench"),native=o.native))
        print("profiled", r.flooded.streams_per_second)
        for n in o.profile:
            print(n); print(summary((Path(".bench")/f"{n}.collapsed.txt").read_text()))
