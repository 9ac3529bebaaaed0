//! The environment of the process (environ(7)).
#![expect(unsafe_code, reason = "changing the environment races with C code that reads it")]

use std::{
    collections::HashMap,
    env,
    ffi::{OsStr, OsString},
};

/// Makes the environment what `wanted` says: sets what differs, removes what is not in it. Of a name given twice the first
/// counts, as getenv(3) has it. What cannot be a variable, because its name is empty or holds `=`, is passed over.
///
/// # Contract
///
/// Rust code that reads the environment through `std::env` shares a lock with this function. C code (getenv(3), localtime(3),
/// getaddrinfo(3)) does not: nobody may run such code meanwhile. Call it while every thread that might is stopped.
pub fn replace(wanted: &[(OsString, OsString)]) {
    let mut rest: HashMap<&OsStr, &OsStr> = HashMap::new();
    for (name, value) in wanted.iter().filter(|(name, value)| is_variable(name, value)) {
        rest.entry(name).or_insert(value);
    }
    for (name, value) in env::vars_os() {
        match rest.remove(name.as_os_str()) {
            Some(same) if same == value => {}
            // SAFETY: nobody reads the environment without the standard library's lock meanwhile, by the contract above.
            Some(other) => unsafe { env::set_var(&name, other) },
            // SAFETY: as above.
            None => unsafe { env::remove_var(&name) },
        }
    }
    for (name, value) in rest {
        // SAFETY: as above.
        unsafe { env::set_var(name, value) };
    }
}

/// Takes the variable `name` out of the environment and overwrites its value where the process was given it.
///
/// # Contract
///
/// That of [`replace`].
pub fn take(name: &str) -> Option<OsString> {
    unsafe extern "C" {
        /// environ(7).
        static mut environ: *mut *mut libc::c_char;
    }
    let value = env::var_os(name)?;
    // SAFETY: reads the C library's pointer; nobody changes it meanwhile, by the contract.
    let mut at = unsafe { environ };
    // SAFETY: the vector ends with a null.
    while let Some(entry) = std::ptr::NonNull::new(unsafe { at.read() }) {
        // SAFETY: entries are NUL-terminated strings.
        let len = unsafe { std::ffi::CStr::from_ptr(entry.as_ptr()) }.count_bytes();
        // SAFETY: the bytes of the string, which belong to the process, on its initial stack or its heap.
        let bytes = unsafe { std::slice::from_raw_parts_mut(entry.as_ptr().cast::<u8>(), len) };
        if bytes.starts_with(name.as_bytes()) && bytes.get(name.len()) == Some(&b'=') {
            crate::secret::wipe(bytes.get_mut(name.len() + 1..).unwrap_or_default());
        }
        at = at.wrapping_add(1);
    }
    // SAFETY: nobody reads the environment without the standard library's lock meanwhile, by the contract.
    unsafe { env::remove_var(name) };
    Some(value)
}

/// What `set_var` takes without a panic.
fn is_variable(name: &OsStr, value: &OsStr) -> bool {
    let (name, value) = (name.as_encoded_bytes(), value.as_encoded_bytes());
    !name.is_empty() && !name.contains(&b'=') && !name.contains(&0) && !value.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_taken_leaves_nothing_behind() {
        let before: Vec<_> = env::vars_os().collect();
        let mut wanted = before.clone();
        wanted.push(("CRAC_SYS_TAKEN".into(), "hush".into()));
        replace(&wanted);
        assert_eq!(take("CRAC_SYS_TAKEN"), Some("hush".into()));
        assert_eq!((take("CRAC_SYS_TAKEN"), env::var_os("CRAC_SYS_TAKEN")), (None, None));
        assert_eq!(env::vars_os().collect::<HashMap<_, _>>(), before.into_iter().collect());
    }

    #[test]
    fn the_environment_becomes_what_is_wanted() {
        let before: Vec<_> = env::vars_os().collect();
        let mut wanted = before.clone();
        for (name, value) in [("CRAC_SYS_TEST", "1"), ("CRAC_SYS_TEST", "2"), ("", "x"), ("A=B", "x"), ("CRAC_NUL", "a\0b")] {
            wanted.push((name.into(), value.into()));
        }
        replace(&wanted);
        assert_eq!(env::var("CRAC_SYS_TEST").as_deref(), Ok("1"), "the first counts");
        assert_eq!(env::vars_os().count(), before.len() + 1);
        replace(&before);
        assert_eq!(env::vars_os().collect::<HashMap<_, _>>(), before.into_iter().collect());
    }
}
