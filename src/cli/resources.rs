//! What the program reads from the system: the environment, the clock, memory and cores.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use nix::sys::resource::{UsageWho, getrusage};

use crate::commands::Machine;
use crate::config::{Limits, MEMORY_BYTES_MIN};
use crate::engine::resources::Resources;

/// The share of the machine's or container's memory that a run may use by default.
const MEMORY_PERCENT: u64 = 60;

#[expect(clippy::disallowed_methods, reason = "the environment is read here and passed on")]
pub(super) fn environment() -> BTreeMap<String, String> {
    std::env::vars().collect()
}

/// What the machine has for a run with these limits.
pub(super) fn machine(resources: &Resources) -> Machine {
    let statistics = nix::sys::statvfs::statvfs(&resources.spill_dir).ok();
    let free = |of: nix::sys::statvfs::Statvfs| {
        // Their types differ from system to system.
        (of.blocks_available() as f64 * of.fragment_size() as f64) as u64
    };
    Machine { memory_bytes: memory_bytes(), free_disk_bytes: statistics.map(free) }
}

/// The memory of the machine or container.
fn memory_bytes() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let container = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    system.total_memory().min(container)
}

/// The number of processors that the program may use.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The limits of the pipeline; where it sets none, those of the machine or container.
pub(super) fn resources(limits: &Limits) -> Resources {
    let memory = || memory_bytes() / 100 * MEMORY_PERCENT;
    Resources {
        memory_bytes: limits.memory_bytes.unwrap_or_else(|| memory().max(MEMORY_BYTES_MIN)),
        spill_dir: limits.spill_dir.clone().unwrap_or_else(std::env::temp_dir),
        spill_bytes_max: limits.spill_bytes_max.unwrap_or(u64::MAX),
        threads: limits.threads.unwrap_or_else(cores),
    }
}

/// The peak resident memory of this process so far, in bytes.
pub(super) fn peak_memory_bytes() -> u64 {
    // On Linux `getrusage` begins with the peak of the program that started this one.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if let Some(kilobytes) = kilobytes {
        return kilobytes * 1024;
    }
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss().max(0) as u64 * unit)
}

#[expect(clippy::disallowed_methods, reason = "the clock is read here and passed on")]
pub(super) fn now() -> DateTime<Utc> {
    Utc::now()
}
