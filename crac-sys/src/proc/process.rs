//! `/proc/PID/stat` and `/proc/PID/status`, of a process or of one of its threads (proc_pid_stat(5), proc_pid_status(5)).

use super::text::{Fields, Malformed, lines, narrow, number, signed, split_once};

/// What `stat` tells, as far as crac needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat<'a> {
    /// Process or thread id.
    pub id: i32,
    /// Thread name, up to 15 bytes; may hold blanks and parentheses.
    pub name: &'a [u8],
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I`.
    pub state: u8,
    /// The parent.
    pub parent: i32,
    /// Start after boot, in clock ticks (`sysconf(_SC_CLK_TCK)`).
    pub start_ticks: u64,
    /// Program text; zero if not permitted, as all addresses below.
    pub code: (u64, u64),
    /// Bottom of the stack.
    pub stack_start: u64,
    /// Initialised and uninitialised data of the program.
    pub data: (u64, u64),
    /// Start of the brk(2) area.
    pub brk_start: u64,
    /// Where the arguments lie.
    pub arguments: (u64, u64),
    /// Where the environment lies.
    pub environment: (u64, u64),
}

impl<'a> ProcessStat<'a> {
    /// Reads the whole text.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is not that of `stat` from Linux 3.5 on.
    pub fn parse(text: &'a [u8]) -> Result<Self, Malformed> {
        Self::read(text).ok_or(Malformed { what: "stat" })
    }

    fn read(text: &'a [u8]) -> Option<Self> {
        // The name may hold anything, but nothing behind it holds a parenthesis.
        let (open, close) = (text.iter().position(|byte| *byte == b'(')?, text.iter().rposition(|byte| *byte == b')')?);
        let id = narrow(text.get(..open)?.trim_ascii(), 10)?;
        let name = text.get(open + 1..close)?;
        // Fields by the manual's numbers; the state is the third.
        let fields = Fields::of(text.get(close + 1..)?);
        let field = |at: usize| fields.clone().nth(at.checked_sub(3)?);
        let address = |at: usize| number(field(at)?, 10);
        let &[state] = field(3)? else { return None };
        Some(Self {
            id,
            name,
            state,
            parent: narrow(field(4)?, 10)?,
            start_ticks: address(22)?,
            code: (address(26)?, address(27)?),
            stack_start: address(28)?,
            data: (address(45)?, address(46)?),
            brk_start: address(47)?,
            arguments: (address(48)?, address(49)?),
            environment: (address(50)?, address(51)?),
        })
    }
}

/// What `status` tells, as far as crac needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStatus<'a> {
    /// Thread name, escaped by the kernel.
    pub name: &'a [u8],
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Process id of the tracer; zero without one.
    pub tracer: i32,
    /// Number of threads.
    pub threads: u64,
    /// User ids: real, effective, saved, file system.
    pub users: [u32; 4],
    /// Group ids: real, effective, saved, file system.
    pub groups: [u32; 4],
    /// Bytes of locked memory.
    pub locked_bytes: u64,
    /// Signals pending for this thread.
    pub pending: SignalSet,
    /// Signals pending for the process.
    pub pending_shared: SignalSet,
    /// Signals this thread blocks.
    pub blocked: SignalSet,
    /// Ignored signals.
    pub ignored: SignalSet,
    /// Signals with a handler.
    pub caught: SignalSet,
    /// Capabilities: inheritable, permitted, effective, bounding, ambient.
    pub capabilities: [u64; 5],
    /// prctl `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Number of seccomp filters (Linux >= 5.9).
    pub seccomp_filters: Option<u32>,
    /// `x86_Thread_features`: `shstk`, `wrss`; empty elsewhere.
    pub cpu_features: &'a [u8],
}

impl<'a> ProcessStatus<'a> {
    /// Reads the whole text.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if a field is missing that every supported kernel prints, or a known one cannot be read.
    pub fn parse(text: &'a [u8]) -> Result<Self, Malformed> {
        Self::read(text).ok_or(Malformed { what: "status" })
    }

    fn read(text: &'a [u8]) -> Option<Self> {
        let find = |label: &[u8]| {
            lines(text).find_map(|line| {
                let (found, value) = split_once(line, b':')?;
                (found == label).then(|| value.trim_ascii())
            })
        };
        let signals = |label: &[u8]| number(find(label)?, 16).map(SignalSet);
        let capability = |label: &[u8]| number(find(label)?, 16);
        // Kernel threads and zombies have no memory lines.
        let locked_bytes = match find(b"VmLck") {
            Some(value) => number(Fields::of(value).next()?, 10)?.checked_mul(1024)?,
            None => 0,
        };
        let umask = match find(b"Umask") {
            Some(value) => Some(narrow(value, 8)?),
            None => None,
        };
        let seccomp_filters = match find(b"Seccomp_filters") {
            Some(value) => Some(narrow(value, 10)?),
            None => None,
        };
        Some(Self {
            name: find(b"Name")?,
            umask,
            tracer: i32::try_from(signed(find(b"TracerPid")?)?).ok()?,
            threads: number(find(b"Threads")?, 10)?,
            users: four(find(b"Uid")?)?,
            groups: four(find(b"Gid")?)?,
            locked_bytes,
            pending: signals(b"SigPnd")?,
            pending_shared: signals(b"ShdPnd")?,
            blocked: signals(b"SigBlk")?,
            ignored: signals(b"SigIgn")?,
            caught: signals(b"SigCgt")?,
            capabilities: [
                capability(b"CapInh")?,
                capability(b"CapPrm")?,
                capability(b"CapEff")?,
                capability(b"CapBnd")?,
                capability(b"CapAmb")?,
            ],
            no_new_privileges: number(find(b"NoNewPrivs")?, 10)? != 0,
            // Absent when the kernel is built without seccomp.
            seccomp: find(b"Seccomp").map_or(Some(0), |value| narrow(value, 10))?,
            seccomp_filters,
            cpu_features: find(b"x86_Thread_features").unwrap_or_default(),
        })
    }
}

fn four(text: &[u8]) -> Option<[u32; 4]> {
    let mut fields = Fields::of(text);
    let mut next = || narrow(fields.next()?, 10);
    Some([next()?, next()?, next()?, next()?])
}

/// A set of signals as the kernel keeps it: bit 0 is signal 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SignalSet(pub u64);

impl SignalSet {
    /// Whether `signal` (1 to 64) is in the set.
    pub const fn contains(self, signal: u32) -> bool {
        matches!(signal, 1..=64) && self.0 & (1 << (signal - 1)) != 0
    }

    /// The signals in the set, ascending.
    pub fn iter(self) -> impl Iterator<Item = u32> + Clone {
        (1..=64).filter(move |signal| self.contains(*signal))
    }

    /// Whether no signal is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = include_bytes!("../../testdata/stat.txt");
        let stat = ProcessStat::parse(text).unwrap();
        assert_eq!((stat.id, stat.name, stat.state, stat.parent), (4798, &b"a) R (b"[..], b'R', 4795));
        assert_eq!(stat.start_ticks, 103_410);
        assert_eq!(stat.code, (93_852_737_335_296, 93_852_737_335_637));
        assert_eq!((stat.stack_start, stat.brk_start), (140_732_068_336_784, 93_853_445_939_200));
        assert_eq!(stat.arguments, (140_732_068_342_006, 140_732_068_342_057));
        assert_eq!(stat.environment, (140_732_068_342_057, 140_732_068_343_759));
    }

    #[test]
    fn a_stat_cut_short_is_refused() {
        let text = include_bytes!("../../testdata/stat.txt");
        assert!(ProcessStat::parse(&text[..text.len() / 2]).is_err());
        assert!(ProcessStat::parse(b") (").is_err());
    }

    #[test]
    fn a_real_status_is_read() {
        let status = ProcessStatus::parse(include_bytes!("../../testdata/status.txt")).unwrap();
        assert_eq!((status.name, status.tracer, status.threads), (&b"web-server"[..], 0, 8));
        assert_eq!((status.users, status.groups), ([65534; 4], [65534; 4]));
        assert_eq!((status.locked_bytes, status.umask), (8192, Some(0o022)));
        assert!(status.no_new_privileges);
        assert_eq!((status.seccomp, status.seccomp_filters), (2, Some(1)));
        assert_eq!(status.blocked.iter().collect::<Vec<_>>(), [1, 15]);
        assert!(status.pending.is_empty() && status.caught.contains(11));
        assert_eq!(status.capabilities[3], 0x1ff_feff_ffff);
    }

    #[test]
    fn signals_outside_the_set_are_not_in_it() {
        let all = SignalSet(u64::MAX);
        assert!(all.contains(1) && all.contains(64) && !all.contains(0) && !all.contains(65));
        assert_eq!(all.iter().count(), 64);
    }
}
