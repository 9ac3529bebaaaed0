//! Puts the shim between the C library and the kernel, and tries it.
//!
//! This happens once in the life of a process, before its first capture: a process that is never captured is never changed, and
//! later lives bring it along in their memory. All other threads are stopped meanwhile, and the text is written to through
//! `/proc/self/mem`, so nothing is ever writable and executable, which security policies forbid.
#![expect(unsafe_code, reason = "changes the text of the C library, and calls it to see that it worked")]

use std::{
    ffi::CStr,
    mem::MaybeUninit,
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
    ptr, slice,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use crac_sys::{
    Errno, fs,
    mem::{self, PAGE_SIZE},
    proc::{Mapping, MappingName},
    signal,
};

use super::{
    offset::Offset,
    shim,
    sites::{self, Patch, Patches},
    vdso,
};
use crate::{
    arena::Arena,
    exec,
    findings::ObstacleSink,
    freeze::{Frozen, Watch},
    layout::{PAGE, ZONE_HINT},
    plan,
};

/// What the process was prepared with.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Addresses behind the system calls that were replaced, in order: a thread that was in one before is covered from its next
    /// try on.
    behind: Vec<usize>,
}

impl Layer {
    /// Whether a thread that is in a system call which ends at `ip` is, or will be at its next try, shifted.
    pub(crate) fn covers(&self, ip: u64) -> bool {
        shim::is_shifted_wait(ip as usize) || self.behind.binary_search(&(ip as usize)).is_ok()
    }

    /// How many places lead through the shim.
    pub(crate) fn sites(&self) -> usize {
        self.behind.len()
    }
}

/// Prepares this process, or says why that cannot be done. Threads may take `deadline` to stop; the answer is kept.
pub(crate) fn prepare(deadline: Duration) -> Result<&'static Layer, &'static str> {
    static PREPARED: OnceLock<Result<Layer, String>> = OnceLock::new();
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    PREPARED.get_or_init(|| install(deadline)).as_ref().map_err(String::as_str)
}

fn install(deadline: Duration) -> Result<Layer, String> {
    let functions = Functions::find()?;
    let mut all = Vec::new();
    for code in functions.code()? {
        let sites = sites::find(code.bytes(), code.start);
        let room = code.room(sites::room(sites.len()))?;
        all.push(sites::patches(code.bytes(), code.start, &sites, room, shim::syscall_address())?);
    }
    let memory = own_memory()?;
    let tried = stopped(deadline, || {
        let written = all.iter().try_for_each(|patches| write(memory.as_fd(), patches));
        let tried = written.and_then(|()| functions.try_all());
        if tried.is_err() {
            for patch in all.iter().flat_map(|patches| &patches.jumps) {
                // What cannot be taken back works as it is: the offset of this life is zero.
                let _ = fs::write_all_at(memory.as_fd(), &patch.before, patch.at as u64);
            }
        }
        tried
    })?;
    tried?;
    let mut behind: Vec<usize> = all.iter().flat_map(Patches::behind).collect();
    behind.sort_unstable();
    Ok(Layer { behind })
}

fn own_memory() -> Result<std::os::fd::OwnedFd, String> {
    fs::open(c"/proc/self/mem", libc::O_RDWR | libc::O_CLOEXEC, 0).map_err(|errno| format!("/proc/self/mem: {errno}"))
}

/// Runs `work` while every other thread is stopped. It must not allocate, and take no lock that one of them may hold.
fn stopped<T>(deadline: Duration, work: impl FnOnce() -> T) -> Result<T, String> {
    let failed = |errno: Errno| format!("stopping the other threads: {errno}");
    let arena = Arena::new().map_err(failed)?;
    let (vdso, loader) = (exec::vdso().unwrap_or_default().as_ptr_range(), exec::loader().unwrap_or_default());
    let mask = signal::set_mask(u64::MAX).map_err(failed)?;
    let done = {
        let mut sink = ObstacleSink::new(&arena);
        let avoided = [vdso.start.addr()..vdso.end.addr(), loader];
        Frozen::all(&arena, avoided, Watch::Nothing, deadline, &mut sink).map(|frozen| {
            let done = work();
            drop(frozen);
            done
        })
    };
    // The mask was valid when it was read.
    let _ = signal::set_mask(mask);
    done.map_err(|_| "a thread does not stop".to_owned())
}

fn write(memory: BorrowedFd<'_>, patches: &Patches) -> Result<(), &'static str> {
    for Patch { at, after, .. } in std::iter::once(&patches.trampolines).chain(&patches.jumps) {
        fs::write_all_at(memory, after, *at as u64).map_err(|_| "the kernel does not let a process change its own text")?;
        // SAFETY: text or padding of the C library, or the page that `room` has mapped: readable.
        let now = unsafe { slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(*at), after.len()) };
        if now != after {
            return Err("a change of the C library's text is not seen");
        }
    }
    Ok(())
}

/// The code of a part of the C library.
struct Code {
    start: usize,
    len: usize,
}

impl Code {
    fn bytes(&self) -> &[u8] {
        // SAFETY: code that the loader has mapped, readable; nobody unloads it, and it is changed only when this is gone.
        unsafe { slice::from_raw_parts(ptr::with_exposed_provenance(self.start), self.len) }
    }

    /// Where `bytes` of trampolines go: behind the code, in its last page, or in a page of their own within reach.
    fn room(&self, bytes: usize) -> Result<Range<usize>, String> {
        let end = self.start + self.len;
        let (free, whole) = (end.next_multiple_of(64), end.next_multiple_of(PAGE_SIZE));
        // SAFETY: the rest of a page of which a part is mapped and readable.
        let rest = unsafe { slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(free.min(whole)), whole - free.min(whole)) };
        if rest.len() >= bytes && rest.iter().all(|byte| *byte == 0) {
            return Ok(free..whole);
        }
        let maps = std::fs::read("/proc/self/maps").map_err(|error| format!("/proc/self/maps: {error}"))?;
        let taken = Mapping::all(&maps).flatten().map(|mapping| (mapping.start, mapping.end));
        let (len, start) = (bytes.next_multiple_of(PAGE_SIZE), self.start as u64);
        // Below the code: above a program lies the heap, which is to grow.
        // A program's own code begins anywhere in a page.
        let lowest = (start.saturating_sub(1 << 30) & !(PAGE - 1)).max(16 * PAGE);
        let found = plan::hole(taken, lowest, len as u64, start);
        let at = found.ok_or("there is no room for trampolines within reach of the C library")? as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: the kernel maps it there only if nothing else is.
        let mapped = unsafe { mem::map(at, len, libc::PROT_READ | libc::PROT_EXEC, flags, -1, 0) };
        mapped.map(|at| at..at + len).map_err(|errno| format!("mapping a page for trampolines: {errno}"))
    }
}

type Syscall = unsafe extern "C" fn(libc::c_long, ...) -> libc::c_long;
type SleepUntil = unsafe extern "C" fn(libc::clockid_t, i32, *const libc::timespec, *mut libc::timespec) -> i32;
type WaitUntil = unsafe extern "C" fn(*mut libc::pthread_cond_t, *mut libc::pthread_mutex_t, *const libc::timespec) -> i32;
type SetTimer = unsafe extern "C" fn(i32, i32, *const libc::itimerspec, *mut libc::itimerspec) -> i32;
type LockUntil = unsafe extern "C" fn(*mut libc::pthread_mutex_t, libc::clockid_t, *const libc::timespec) -> i32;

/// Executable memory of an object that the dynamic loader, or a static program, has mapped.
#[derive(Debug)]
pub(crate) struct Segment {
    /// The path of the object's file as the loader knows it; empty for the program itself.
    pub(crate) name: Vec<u8>,
    pub(crate) addresses: Range<usize>,
}

/// All of them. Takes the loader's lock.
pub(crate) fn segments() -> Vec<Segment> {
    unsafe extern "C" fn add(info: *mut libc::dl_phdr_info, _: usize, found: *mut libc::c_void) -> i32 {
        // SAFETY: the loader hands a filled record to the callback.
        let info = unsafe { &*info };
        // SAFETY: `segments` hands its own list over, and does not touch it meanwhile.
        let found = unsafe { &mut *found.cast::<Vec<Segment>>() };
        // SAFETY: the loader's name of the object, which stays while it holds its lock.
        let name = if info.dlpi_name.is_null() { c"" } else { unsafe { CStr::from_ptr(info.dlpi_name) } };
        for index in 0..usize::from(info.dlpi_phnum) {
            let at = info.dlpi_phdr.wrapping_add(index);
            // SAFETY: the loader's table has `dlpi_phnum` entries.
            let header = unsafe { at.read() };
            if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 {
                let start = (info.dlpi_addr + header.p_vaddr) as usize;
                found.push(Segment { name: name.to_bytes().to_vec(), addresses: start..start + header.p_filesz as usize });
            }
        }
        0
    }
    let mut found: Vec<Segment> = Vec::new();
    // SAFETY: the callback gets the list that lives here.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut found).cast()) };
    found
}

/// The functions of the C library that wait until a moment, as other libraries see them.
struct Functions {
    syscall: Syscall,
    sleep: SleepUntil,
    wait: WaitUntil,
    set_timer: SetTimer,
    /// Since glibc 2.30.
    lock: Option<LockUntil>,
}

impl Functions {
    /// Looks them up before anything is stopped: that takes the dynamic loader's lock.
    fn find() -> Result<Self, String> {
        // In a program that is linked at fixed addresses a function's address is that of a jump in the program itself.
        let next = |name: &CStr, own: usize| {
            let found = if cfg!(target_feature = "crt-static") {
                own
            } else {
                // SAFETY: the name is NUL-terminated; looking it up has no other effect.
                unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }.addr()
            };
            (found != 0).then_some(found).ok_or_else(|| format!("the C library has no {}", name.to_string_lossy()))
        };
        let syscall = next(c"syscall", libc::syscall as *const () as usize)?;
        let sleep = next(c"clock_nanosleep", libc::clock_nanosleep as *const () as usize)?;
        let wait = next(c"pthread_cond_timedwait", libc::pthread_cond_timedwait as *const () as usize)?;
        let set_timer = next(c"timerfd_settime", libc::timerfd_settime as *const () as usize)?;
        let lock = next(c"pthread_mutex_clocklock", 0).ok();
        Ok(Self {
            // SAFETY: the C library's function of this name, which has this signature for good.
            syscall: unsafe { std::mem::transmute::<usize, Syscall>(syscall) },
            // SAFETY: as above.
            sleep: unsafe { std::mem::transmute::<usize, SleepUntil>(sleep) },
            // SAFETY: as above.
            wait: unsafe { std::mem::transmute::<usize, WaitUntil>(wait) },
            // SAFETY: as above.
            set_timer: unsafe { std::mem::transmute::<usize, SetTimer>(set_timer) },
            // SAFETY: as above.
            lock: lock.map(|lock| unsafe { std::mem::transmute::<usize, LockUntil>(lock) }),
        })
    }

    /// The code that holds them: one library, or with old versions several.
    fn code(&self) -> Result<Vec<Code>, String> {
        let wanted = [
            self.syscall as *const () as usize,
            self.sleep as *const () as usize,
            self.wait as *const () as usize,
            self.set_timer as *const () as usize,
        ];
        let is_wanted = |range: &Range<usize>| wanted.iter().any(|address| range.contains(address));
        let found = segments().into_iter().map(|segment| segment.addresses).filter(is_wanted);
        let found: Vec<Code> = found.map(|range| Code { start: range.start, len: range.len() }).collect();
        if found.is_empty() { Err("the C library's code is not found".into()) } else { Ok(found) }
    }

    /// Waits until a moment long past in every way that programs have, and sees whether each led through the shim.
    fn try_all(&self) -> Result<(), &'static str> {
        let past = libc::timespec { tv_sec: 0, tv_nsec: 1 };
        let through = |what: &'static str, call: &dyn Fn() -> bool| {
            let before = shim::shifted();
            let as_expected = call();
            if as_expected && shim::shifted() == before + 1 { Ok(()) } else { Err(what) }
        };
        let word = 0_u32;
        let operation = libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG;
        through("futex waits of programs lead past the shim", &|| {
            // SAFETY: the word and the deadline outlive the call, which only reads them.
            unsafe { (self.syscall)(libc::SYS_futex, &raw const word, operation, 0, &raw const past, 0_usize, u32::MAX) == -1 }
        })?;
        through("clock_nanosleep leads past the shim", &|| {
            // SAFETY: the deadline outlives the call, which only reads it.
            unsafe { (self.sleep)(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const past, ptr::null_mut()) == 0 }
        })?;
        let (mut condition, mut mutex) = (MaybeUninit::<libc::pthread_cond_t>::uninit(), libc::PTHREAD_MUTEX_INITIALIZER);
        let mut attributes = MaybeUninit::<libc::pthread_condattr_t>::uninit();
        let (condition, mutex, attributes) = (condition.as_mut_ptr(), &raw mut mutex, attributes.as_mut_ptr());
        // SAFETY: an object of this frame that is not used yet; none of these four calls fails for such.
        unsafe { libc::pthread_condattr_init(attributes) };
        // SAFETY: initialised above.
        unsafe { libc::pthread_condattr_setclock(attributes, libc::CLOCK_MONOTONIC) };
        // SAFETY: an object of this frame that is not used yet, and the attributes from above.
        unsafe { libc::pthread_cond_init(condition, attributes) };
        // SAFETY: a mutex of this frame that nobody else knows.
        unsafe { libc::pthread_mutex_lock(mutex) };
        through("pthread_cond_timedwait leads past the shim", &|| {
            // SAFETY: initialised above, and the mutex is locked.
            unsafe { (self.wait)(condition, mutex, &raw const past) == libc::ETIMEDOUT }
        })?;
        if let Some(lock) = self.lock {
            through("pthread_mutex_clocklock leads past the shim", &|| {
                // SAFETY: a mutex of the default kind, which its owner may wait for.
                unsafe { lock(mutex, libc::CLOCK_MONOTONIC, &raw const past) == libc::ETIMEDOUT }
            })?;
        }
        // SAFETY: makes a descriptor.
        let timer = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) };
        let time = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: past };
        let set = through("timerfd_settime leads past the shim", &|| {
            // SAFETY: the time outlives the call, which only reads it.
            unsafe { (self.set_timer)(timer, libc::TFD_TIMER_ABSTIME, &raw const time, ptr::null_mut()) == 0 }
        });
        // SAFETY: the descriptor of this function, if there is one.
        unsafe { libc::close(timer) };
        set
    }
}

/// Addresses of the C library's code. Takes the dynamic loader's lock.
#[cfg(not(target_feature = "crt-static"))]
pub(crate) fn c_library() -> Vec<Range<usize>> {
    let code = Functions::find().and_then(|functions| functions.code()).unwrap_or_default();
    code.into_iter().map(|code| code.start..code.start + code.len).collect()
}

#[cfg(target_feature = "crt-static")]
std::arch::global_asm!(
    ".pushsection .data.rel.ro, \"aw\", @progbits",
    ".balign 8",
    ".hidden crac_c_library_madvise",
    ".globl crac_c_library_madvise",
    "crac_c_library_madvise:",
    ".weak __madvise",
    ".quad __madvise",
    ".weak posix_madvise",
    ".quad posix_madvise",
    ".popsection",
);

/// The same in a static program, of which it is a part: of its `madvise`, as far as that is there, and of the second C library that
/// comes along with libraries that such a program opens. What those call by name is not crac's.
#[cfg(target_feature = "crt-static")]
pub(crate) fn c_library() -> Vec<Range<usize>> {
    unsafe extern "C" {
        // Two words that the linker fills in, above; nobody writes to them.
        safe static crac_c_library_madvise: [usize; 2];
    }
    /// From the entry of such a function to behind its system call.
    const LEN: usize = 32;
    let own = crac_c_library_madvise.iter().filter(|entry| **entry != 0).map(|entry| *entry..*entry + LEN);
    let is_second = |segment: &Segment| segment.name.rsplit(|byte| *byte == b'/').next() == Some(b"libc.so.6");
    own.chain(segments().into_iter().filter(is_second).map(|segment| segment.addresses)).collect()
}

/// Whether a proxy stands where this program knows the vdso.
pub(crate) fn is_proxied() -> bool {
    // SAFETY: only asks; 0 stands for "not there".
    let known = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    exec::vdso().is_some_and(|vdso| known != 0 && vdso.as_ptr().addr() != known as usize)
}

/// Has the proxy of this restored life lead to the vdso at `real_at`, that of another build of the kernel. Nothing is allocated, and
/// no function of the vdso may be called before.
///
/// # Safety
///
/// A proxy stands where this program knows the vdso, and `bytes` of the real one are mapped at `real_at`.
pub(crate) unsafe fn follow(real_at: usize, bytes: usize) {
    // SAFETY: only asks; the auxiliary vector is part of the restored memory.
    let known = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    // SAFETY: the proxy, of at least a page.
    let start = unsafe { ptr::with_exposed_provenance::<[u8; 64]>(known).read() };
    let extent = vdso::extent(&start).unwrap_or(0);
    // SAFETY: a copy of a whole vdso, whose section headers are at its end.
    let proxy = unsafe { slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(known), extent) };
    // SAFETY: the caller's promise.
    let real = unsafe { slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(real_at), bytes) };
    let found = vdso::found_again(proxy, real, real_at as u64, |name| shim::by_system_call(name) as u64);
    debug_assert!(found.is_ok(), "it was a vdso when the proxy was made of it");
    if let Ok(found) = found {
        shim::set_real(&found);
    }
}

/// Shifts the clocks of this process by `by_s` seconds, but not below zero, as a restore on another host does. For tests: a
/// service that runs like this shows at once what such a restore would break.
pub(crate) fn shift(by_s: i64, deadline: Duration) -> Result<(), String> {
    prepare(deadline)?;
    if is_proxied() {
        return Err("they are shifted already".into());
    }
    let maps = std::fs::read("/proc/self/maps").map_err(|error| format!("/proc/self/maps: {error}"))?;
    let is_own = |mapping: &Mapping<'_>| matches!(mapping.name(), MappingName::Vdso | MappingName::Vvar);
    let own: Vec<Range<usize>> =
        Mapping::all(&maps).flatten().filter(is_own).map(|mapping| mapping.start as usize..mapping.end as usize).collect();
    let (Some(first), Some(code)) = (own.first(), own.last()) else { return Err("there is no vdso".into()) };
    let taken = Mapping::all(&maps).flatten().map(|mapping| (mapping.start, mapping.end));
    let bytes = (code.end - first.start) as u64;
    let target = plan::hole(taken, ZONE_HINT, bytes, 1 << 47).ok_or("there is no room for the vdso")? as usize;
    let real = target + (code.start - first.start);
    let mut copy = exec::vdso().unwrap_or_default().to_vec();
    let proxy = vdso::stand_in(&mut copy, real as u64, shim::read_address() as u64, shim::table_address() as u64)?;
    let memory = own_memory()?;
    let now = shim::kernel();
    // The clocks keep their distances.
    let lowest = [now.monotonic_ns, now.raw_ns, now.boottime_ns].into_iter().min().unwrap_or(0);
    let by = Offset::from_ns((i128::from(by_s) * 1_000_000_000).max(1_000_000_000 - i128::from(lowest)));
    stopped(deadline, || {
        for part in &own {
            // SAFETY: no thread is stopped in the vdso, this one does not use it, and the target is free.
            unsafe { mem::remap(part.start, part.len(), target + (part.start - first.start)) }?;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: where the vdso has been until now.
        unsafe { mem::map(code.start, code.len(), libc::PROT_READ | libc::PROT_EXEC, flags, -1, 0) }?;
        fs::write_all_at(memory.as_fd(), &copy, code.start as u64)?;
        shim::set_real(&proxy);
        shim::set_offsets([by; 3]);
        Ok(())
    })?
    .map_err(|errno: Errno| format!("moving the vdso: {errno}"))
}
