//! Plain records to bytes and back.
#![expect(unsafe_code, reason = "records without padding, for which any bytes are valid")]

use std::{mem, slice};

use crate::layout::{
    ActionRecord, Boot, FileRecord, Header, MappingRecord, ObjectRecord, RangeRecord, RunRecord, SettingRecord, ThreadRecord,
    descriptors::DescriptorRecord,
};

/// A record of the layout.
///
/// # Safety
///
/// `repr(C)`, of integers and arrays of them only, without padding: every byte is initialised, and any bytes are a value.
pub(crate) unsafe trait Record: Copy {
    /// The record's bytes.
    fn bytes(&self) -> &[u8] {
        bytes_of(slice::from_ref(self))
    }

    /// The record at the start of `bytes`.
    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..size_of::<Self>())?;
        // SAFETY: as many bytes as the record has, any of which are a value; the read does not ask for alignment.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

/// The bytes of records in a row.
pub(crate) fn bytes_of<T: Record>(records: &[T]) -> &[u8] {
    // SAFETY: by the contract of `Record` every byte is initialised.
    unsafe { slice::from_raw_parts(records.as_ptr().cast::<u8>(), mem::size_of_val(records)) }
}

/// All records in `bytes`, if they are a whole number.
pub(crate) fn records<T: Record>(bytes: &[u8]) -> Option<Vec<T>> {
    let whole = bytes.len().is_multiple_of(size_of::<T>());
    whole.then(|| bytes.chunks_exact(size_of::<T>()).filter_map(T::read).collect())
}

// SAFETY: integers and records of integers, sizes and alignment asserted beside each definition, padding named.
unsafe impl Record for Header {}
// SAFETY: as above.
unsafe impl Record for Boot {}
// SAFETY: as above.
unsafe impl Record for MappingRecord {}
// SAFETY: as above.
unsafe impl Record for RunRecord {}
// SAFETY: as above.
unsafe impl Record for RangeRecord {}
// SAFETY: as above.
unsafe impl Record for FileRecord {}
// SAFETY: as above.
unsafe impl Record for ThreadRecord {}
// SAFETY: as above.
unsafe impl Record for ActionRecord {}
// SAFETY: as above.
unsafe impl Record for DescriptorRecord {}
// SAFETY: as above.
unsafe impl Record for u64 {}
// SAFETY: as above.
unsafe impl Record for SettingRecord {}
// SAFETY: as above.
unsafe impl Record for ObjectRecord {}
