//! The allocator's heaps.

/// Limits the number of allocator heaps; call it before any thread starts. By default glibc creates
/// up to eight heaps per processor, and memory freed in one heap is not reused by others.
pub fn share_heaps(heaps: usize) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: no other thread is running yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, i32::try_from(heaps).unwrap_or(i32::MAX));
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = heaps;
}
