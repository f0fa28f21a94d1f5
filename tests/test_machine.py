"""Limits of memory and CPUs as the kernel tells them, in folders made by hand."""

import os
import resource

import pytest

from raytrain import control_groups, machine, memory

GB = 10**9


def system(tmp_path, cgroup, files, available_kb=8_000_000):
    """/sys/fs/cgroup and /proc with some files; `cgroup` is the text of /proc/self/cgroup."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(cgroup)
    (proc / "meminfo").write_text(f"MemTotal: 9000000 kB\nMemAvailable:    {available_kb} kB\n")
    cgroups.mkdir()
    for name, content in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(content)
    return cgroups, proc


V2 = {
    "job/memory.max": f"{4 * GB}\n",
    "job/memory.current": f"{2 * GB}\n",
    "job/memory.stat": f"anon 5\ninactive_file {GB // 2}\nactive_file {GB // 2}\n",
    "job/memory.events": "low 0\noom 3\noom_kill 2\n",
}
V1 = {
    "memory/job/memory.limit_in_bytes": f"{4 * GB}\n",
    "memory/job/memory.usage_in_bytes": f"{2 * GB}\n",
    "memory/job/memory.stat": f"cache 7\ntotal_inactive_file {GB // 2}\ntotal_active_file {GB // 2}\n",
    "memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
}
V1_LINES = "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n"


@pytest.mark.parametrize(
    ("lines", "files"), [("0::/job\n", V2), (V1_LINES, V1)], ids=["version 2", "version 1"]
)
def test_what_is_left_of_a_limit_counts_files_in_memory_as_free(tmp_path, lines, files):
    found = memory.left(*system(tmp_path, lines, files))
    assert found.free == 3 * GB
    assert "the limit of 4.0 GB" in found.bound
    assert memory.kills(tmp_path / "cgroup", tmp_path / "proc") == 2


@pytest.mark.parametrize(
    ("lines", "files"), [("0::/job\n", V2), (V1_LINES, V1)], ids=["version 2", "version 1"]
)
def test_a_machine_with_less_free_memory_than_the_limit_is_the_bound(tmp_path, lines, files):
    found = memory.left(*system(tmp_path, lines, files, available_kb=1000))
    assert found == memory.Memory(1_024_000, "free on this machine", 9_216_000_000)


def test_the_limit_of_a_group_above_counts_too(tmp_path):
    inner = {f"job/step/{name.removeprefix('job/')}": text for name, text in V2.items()}
    inner["job/step/memory.max"] = "max\n"
    found = memory.left(*system(tmp_path, "0::/job/step\n", {**V2, **inner}))
    assert found.free == 3 * GB


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path):
    files = {name.removeprefix("job/"): text for name, text in V2.items()}
    found = memory.left(*system(tmp_path, "0::/docker/0123abcd\n", files))
    assert found.free == 3 * GB


def test_no_limit_and_no_groups_leave_the_free_memory(tmp_path):
    found = memory.left(*system(tmp_path, "0::/job\n", {**V2, "job/memory.max": "max\n"}))
    assert found == memory.Memory(8_192_000_000, "free on this machine", 9_216_000_000)
    assert memory.left(tmp_path / "nothing", tmp_path / "proc").bound == "free on this machine"


def test_a_system_that_tells_nothing_is_no_bound(tmp_path):
    assert memory.left(tmp_path, tmp_path) is None
    assert memory.kills(tmp_path, tmp_path) == 0


def process(proc, pid, title, anonymous_kb, group="0::/job\n"):
    path = proc / str(pid)
    path.mkdir()
    (path / "status").write_text(
        f"Name: x\nVmRSS:  {2 * anonymous_kb} kB\nRssAnon:  {anonymous_kb} kB\n"
    )
    (path / "cmdline").write_text(title)
    (path / "cgroup").write_text(group)


def test_holders_are_the_processes_of_the_same_group_the_largest_first(tmp_path):
    _, proc = system(tmp_path, "0::/job\n", {})
    process(proc, 10, "/usr/bin/python\0-m\0x", 100)
    process(proc, 11, "ray::RayTrainWorker", 300)
    process(proc, 12, "other", 900, group="0::/elsewhere\n")
    assert memory.holders(proc) == [("ray::RayTrainWorker", 307_200), ("python", 102_400)]


def test_this_process_holds_memory_and_stands_among_the_holders():
    assert memory.resident() > 10**6
    assert memory.holders()


QUOTAS = {
    "version 2": ("0::/job\n", {"job/cpu.max": "50000 100000\n"}, 0.5),
    "version 2, none": ("0::/job\n", {"job/cpu.max": "max 100000\n"}, None),
    "version 2, above": (
        "0::/job/step\n",
        {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"},
        1.5,
    ),
    "version 1": (
        "5:cpu,cpuacct:/job\n0::/\n",
        {"cpu/job/cpu.cfs_quota_us": "300000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
        3.0,
    ),
    "version 1, none": (
        "5:cpu,cpuacct:/job\n0::/\n",
        {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "in a container": ("0::/docker/0123abcd\n", {"cpu.max": "250000 100000\n"}, 2.5),
    "no control groups": ("", {}, None),
}


@pytest.mark.parametrize(("lines", "files", "quota"), QUOTAS.values(), ids=QUOTAS)
def test_the_cpu_quota_is_the_smallest_of_this_group_and_those_above(tmp_path, lines, files, quota):
    assert control_groups.cpu_quota(*system(tmp_path, lines, files)) == quota


@pytest.mark.parametrize(
    ("quota", "usable"), [(50_000, 1), (150_000, 1), (200_000, 2), (900_000, 4)]
)
def test_threads_follow_the_smaller_of_affinity_and_quota(tmp_path, monkeypatch, quota, usable):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    files = {"job/cpu.max": f"{quota} 100000\n"}
    assert machine.usable_cpus(*system(tmp_path, "0::/job\n", files)) == usable


def test_without_a_quota_the_affinity_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6})
    assert machine.usable_cpus(tmp_path, tmp_path) == 3


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (1024, 4096, 4096),
        (1024, 10**6, machine.RAY_OPEN_FILES),
        (1024, resource.RLIM_INFINITY, machine.RAY_OPEN_FILES),
        (10**6, 10**6, 10**6),
    ],
)
def test_ray_raises_the_limit_of_open_files_as_far_as_it_may(monkeypatch, soft, hard, raised):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, hard))
    assert machine.raised_open_files() == raised
