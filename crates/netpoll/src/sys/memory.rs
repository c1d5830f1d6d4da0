//! Memory from the kernel, and how much of it there is.

use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::{fs, io};

use super::{raw, syscall};

/// Page-aligned, zeroed memory that takes pages only where it has been touched, until it is dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to no thread, and a Mapping only hands out its address. Who reads and writes
// there is up to those who use the pointer.
unsafe impl Send for Mapping {}
// SAFETY: as above; `discard` is a system call that any thread may make.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes (more than none).
    pub fn new(len: usize) -> io::Result<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { raw::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        match NonNull::new(start.cast()) {
            Some(first) if start != libc::MAP_FAILED => Ok(Mapping { start: first, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The first byte.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Length in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.len
    }

    /// Gives the pages of a range back to the kernel; the addresses stay valid and read as zeros. Both
    /// arguments are multiples of the page size.
    pub fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range was just found to lie inside this mapping, which nothing else owns.
        unsafe { syscall!(madvise(self.as_ptr().add(offset).cast(), len, libc::MADV_DONTNEED)) }.map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length and unmapped only here. Those who keep pointers into
        // it keep the Mapping.
        unsafe { libc::munmap(self.as_ptr().cast(), self.len) };
    }
}

/// The memory this process may use: the smallest limit of its cgroups (version 2 or 1), or all that the
/// machine has.
pub fn memory_limit() -> u64 {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = own.lines().flat_map(limit_files).filter_map(|file| fs::read_to_string(file).ok());
    limits.filter_map(|text| text.trim().parse().ok()).fold(machine_memory(), u64::min)
}

fn machine_memory() -> u64 {
    // SAFETY: sysconf takes no pointer.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    match (u64::try_from(pages), u64::try_from(size)) {
        (Ok(pages), Ok(size)) => pages.saturating_mul(size),
        _ => u64::MAX,
    }
}

/// Where the limits of one line of /proc/self/cgroup (`id:controllers:path`) may be written: a limit holds
/// for all below it, so also those of the ancestors. A container may see its own path cut off, or one that
/// exists only outside; what cannot be read does not count.
fn limit_files(line: &str) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        some if some.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return Vec::new(),
    };
    let inside = Path::new(path.trim_start_matches('/'));
    inside.ancestors().map(|dir| Path::new(root).join(dir).join(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_zeroed_writable_and_zero_again_where_it_was_discarded() {
        let mapping = Mapping::new(8192).unwrap();
        let (first, second) = (mapping.as_ptr(), mapping.as_ptr().wrapping_add(4096));
        // SAFETY: both pointers lie in the mapping, which this test alone uses.
        unsafe {
            assert_eq!((*first, *second), (0, 0));
            (*first, *second) = (1, 2);
            mapping.discard(0, 4096).unwrap();
            assert_eq!((*first, *second), (0, 2));
        }
    }

    #[test]
    fn discarding_outside_of_the_mapping_is_refused() {
        let mapping = Mapping::new(4096).unwrap();
        assert!(mapping.discard(4096, 4096).is_err());
        assert!(mapping.discard(usize::MAX, 4096).is_err());
    }

    #[test]
    fn a_mapping_that_is_too_large_is_an_error() {
        assert!(Mapping::new(usize::MAX / 2).is_err());
    }

    #[test]
    fn the_memory_limit_is_at_most_what_the_machine_has() {
        assert!(memory_limit() > 1 << 20);
        assert!(memory_limit() <= machine_memory());
    }

    #[test]
    fn limits_of_a_version_2_cgroup_and_of_its_ancestors_count() {
        let files =
            ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/memory.max"];
        assert_eq!(limit_files("0::/a/b"), files.map(PathBuf::from));
    }

    #[test]
    fn of_version_1_only_the_memory_controller_counts() {
        let root = PathBuf::from("/sys/fs/cgroup/memory/memory.limit_in_bytes");
        assert_eq!(limit_files("4:memory:/"), [root]);
        assert_eq!(limit_files("3:cpu,cpuacct:/a"), Vec::<PathBuf>::new());
        assert_eq!(limit_files("garbage"), Vec::<PathBuf>::new());
    }
}
