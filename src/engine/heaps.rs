//! The allocator's heaps.

/// Lets threads share their heaps, before there are any: glibc gives up to eight per processor one
/// of their own, and what is freed in one is of no use to the others.
pub fn share_heaps(heaps: usize) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, i32::try_from(heaps).unwrap_or(i32::MAX));
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = heaps;
}
