"""Layer 2: sampled call stacks: how much is the kernel, the service, idling; in which functions; for which purpose."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench.flamegraph import flamegraph
from bench.lab.layer import EVERYWHERE, Figures, Layer, Target, read_window, window
from bench.lab.perf import Perf, write_script
from bench.lab.script import STACK_FIELDS, Sample, lines_of, read_samples
from bench.stacks import SAMPLES_PER_S, Stacks

__all__ = ["LAYER", "PURPOSES", "purpose"]

_WORDS = {
    "copying bytes": """_*copy_(to|from|user|page) rep_movs _copy_ copyin copyout skb_copy _*memcpy clear_page""",
    "memory": """kmem_cache _*kmalloc kfree _*alloc_ get_page_from free_unref __free_ skb_release skb_free __build_skb
        page_frag put_page _*slab_ rmqueue mem_cgroup __folio""",
    "epoll": """ep_ do_epoll __x64_sys_epoll epoll_ eventpoll""",
    "scheduling": """_*schedule try_to_wake_up pick_next finish_task_switch update_curr (en|de)queue_(task|entity)
        __wake_up default_wake autoremove_wake futex do_futex switch_to ttwu_ resched""",
    "pipes and splice": """_*splice _*do_splice pipe_ iter_file_splice generic_pipe __x64_sys_splice _*skb_splice""",
    "receive: device to TCP": """net_rx_action __napi_poll process_backlog _*netif_receive napi_gro ip_rcv
        ip_local_deliver ip6?_protocol tcp_v[46]_rcv tcp_v[46]_do_rcv tcp_rcv_ tcp_ack tcp_data_queue veth_poll veth_xdp
        ip6_input ip6_rcv""",
    "transmit: TCP to device": """tcp_write_xmit _*tcp_transmit _*tcp_push __tcp_send_ack tcp_tsq _*ip_queue_xmit
        ip_output ip_finish _*ip_local_out _*dev_queue dev_hard sch_ __qdisc veth_xmit loopback_xmit __dev_forward
        enqueue_to_backlog netif_rx nf_ ip6_xmit validate_xmit""",
    "sockets": """tcp_ inet6?_ _*sock_ sk_ __sk_ lock_sock _*release_sock __sys_ sys_ security_socket _*skb_
        __x64_sys_(send|recv|accept|connect|shutdown|socket|setsock|getsock)""",
    "timers and interrupts": """_*hrtimer run_timer timer_ tick_ _*sysvec_ asm_sysvec handle_softirqs __do_softirq
        _*irq_exit rcu_ kvm_ pvclock ktime irqentry clockevents""",
    "system call entry": """do_syscall_64 entry_SYSCALL syscall_ exit_to_user el0_ _*fdget __fget fput ksys_ vfs_""",
}

PURPOSES = {name: re.compile(f"(?:{'|'.join(words.split())})") for name, words in _WORDS.items()}
"""What a kernel function serves, by its name; the innermost function on a stack that has a place here decides."""

USER, OTHER = "the service's own code", "other parts of the kernel"
TOP = 12


def collect(target: Target, directory: Path, seconds: float) -> None:
    recorded = directory / "stacks.data"
    with window(target, directory, seconds, [Perf.sampling(EVERYWHERE, SAMPLES_PER_S, recorded, dwarf=target.dwarf)]):
        write_script(recorded, STACK_FIELDS, directory / "stacks.txt.gz")
    service = set(read_window(directory).pids)
    samples = list(read_samples(lines_of(directory / "stacks.txt.gz")))
    for name, chosen in (("service", [each for each in samples if each.pid in service]), ("system", samples)):
        (directory / f"{name}.svg").write_text(flamegraph(_stacks(chosen), f"{target.name}: {name}"))


def _stacks(samples: Iterable[Sample]) -> Stacks:
    stacks: Stacks = Counter()
    for sample in samples:
        root = "idle" if sample.idle else sample.command
        stacks[(root, *(frame.symbol for frame in reversed(sample.frames)))] += 1
    return stacks


def purpose(sample: Sample) -> str:
    """For what the processor was at work."""
    if not sample.frames or not sample.frames[0].kernel:
        return USER
    for frame in sample.frames:
        for name, pattern in PURPOSES.items():
            if frame.kernel and pattern.match(frame.symbol):
                return name
    return OTHER


def _shares(counts: Counter[str], total: int, most: int) -> Figures:
    return {name: count / total for name, count in counts.most_common(most)} if total else {}


def derive(directory: Path) -> Figures:
    seen = read_window(directory)
    service = set(seen.pids)
    whole: Counter[str] = Counter()
    mine: Counter[str] = Counter()
    others: Counter[str] = Counter()
    purposes: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    paths: Counter[str] = Counter()
    events: Counter[str] = Counter()
    for sample in read_samples(lines_of(directory / "stacks.txt.gz")):
        events[sample.event] += 1
        kernel = bool(sample.frames) and sample.frames[0].kernel
        whole["idle" if sample.idle else "kernel" if kernel else "user"] += 1
        if sample.pid in service:
            mine["kernel" if kernel else "user"] += 1
            purposes[purpose(sample)] += 1
            if sample.frames:
                functions[sample.frames[0].symbol] += 1
                paths[" ← ".join(frame.symbol for frame in sample.frames[:6])] += 1
        elif not sample.idle:
            others[sample.command] += 1
    total, own = sum(whole.values()), sum(mine.values())
    return {
        "samples": total,
        "event": events.most_common(1)[0][0] if events else None,
        "system": {name: whole[name] / total if total else None for name in ("idle", "kernel", "user")},
        "service": {
            "of_busy": own / (total - whole["idle"]) if total > whole["idle"] else None,
            "of_all": own / total if total else None,
            "samples": own,
            "kernel": mine["kernel"] / own if own else None,
            "user": mine["user"] / own if own else None,
        },
        "others": _shares(others, total, 6),
        "purposes": _shares(purposes, own, len(PURPOSES) + 2),
        "functions": _shares(functions, own, TOP),
        "stacks": _shares(paths, own, TOP),
        "cpu_s": seen.passed.cpu_s,
        "gigabytes": seen.passed.gigabytes,
        "requests": seen.passed.requests,
    }


LAYER = Layer(2, "stacks", collect, derive)
