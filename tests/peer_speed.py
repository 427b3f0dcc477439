"""`python -m tests.peer_speed rlfn-s`: a network of others on integers, beside itself in OpenVINO.

The network of tests/tuned.py (its layers at 4 bits, those at 8, those in float), calibrated and
packed: what a layer holds does not change its time. Its plan gives the bits of its layers before
anything is timed, and OpenVINO's float32 those of PyTorch within 1e-3. All take turns in one
process, as in `qsr bench`; ratios of one run are what counts. Needs QSR_PEERS and `.[bench]`.
"""

import argparse
import functools

import torch

import qsr
from qsr.bench.curve import OnnxFile
from qsr.bench.engine import picture, take_turns, timed
from tests import peers, tuned


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=[name for name in peers.PEERS if name.startswith("rlfn")])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--eight", nargs="*", default=[], help="more layers with 8 bits")
    parser.add_argument("--attention", action="store_true", help="of RLFN at 8 bits too")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lr, net = picture(args.size), peers.load(args.name)
    low = tuned.student_of(net, args.name, args.bits, [], args.eight, args.attention)
    qsr.calibrate(low, picture(64))
    packed = qsr.pack(low)
    if not torch.equal(packed(lr), packed.layer_by_layer(lr)):
        raise SystemExit("the plan differs from its layers; nothing was timed.")
    file = OnnxFile.read(peers.folder() / f"{args.name}-x{peers.SCALE}.onnx")
    runs = {
        f"packed w{args.bits}a{args.bits}": functools.partial(packed, lr),
        "packed, layer by layer": functools.partial(packed.layer_by_layer, lr),
        "PyTorch float32": functools.partial(net, lr),
    }
    for precision in ("f32", "bf16"):
        runner = file.open(precision, args.size, args.threads)
        difference = (torch.from_numpy(runner(lr.numpy())) - net(lr)).abs().max().item()
        if precision == "f32" and not difference <= 1e-3:
            raise SystemExit(f"OpenVINO differs from PyTorch by {difference:g}; nothing was timed.")
        runs[f"OpenVINO {precision}"] = functools.partial(runner, lr.numpy())
    for run in runs.values():
        run()
    times = dict(
        zip(runs, take_turns([timed(r) for r in runs.values()], args.rounds, ""), strict=True)
    )
    least = times["OpenVINO f32"][0]
    print(f"{args.name}, {args.size} x {args.size} pixels in, {args.threads} thread(s)")
    print(f"{100 * packed.plan.coverage:.1f} % of the products in integer regions")
    for name, (best, median) in times.items():
        print(f"{name:24} {best:7.1f} ms (median {median:.1f}), {best / least:.2f} of OpenVINO f32")


if __name__ == "__main__":
    main()
