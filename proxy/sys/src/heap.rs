//! The allocator's habits.

/// Lets the process keep so much freed memory at the end of each heap. By default glibc gives all
/// above 128 KiB back to the kernel, and the next burst pays for it with page faults.
pub fn keep_freed(bytes: u32) {
    #[cfg(target_env = "gnu")]
    {
        let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        // SAFETY: it sets a number within the allocator, under the allocator's own lock. It may
        // refuse; then the default stays.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, bytes) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}
