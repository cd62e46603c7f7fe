//! Any system call with any arguments: what an attacker has who runs code of their own.
//!
//! JUSTIFICATION: the attacks are system calls that no library has a safe wrapper for, because no program should make
//! them. The one module of this program with `unsafe`.

use nix::errno::Errno;

/// An argument.
pub(crate) enum Argument<'a> {
    Number(i64),
    /// The address of bytes that the kernel may read and write.
    Bytes(&'a mut [u8]),
}

impl From<i64> for Argument<'_> {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<i32> for Argument<'_> {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u32> for Argument<'_> {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl<'a> From<&'a mut [u8]> for Argument<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

/// Makes a system call of at most six arguments; what is not given is 0.
pub(crate) fn call<const N: usize>(number: libc::c_long, arguments: [Argument<'_>; N]) -> Result<i64, Errno> {
    let mut words = [0_i64; 6];
    for (word, argument) in words.iter_mut().zip(arguments) {
        *word = match argument {
            Argument::Number(number) => number,
            Argument::Bytes(bytes) => bytes.as_mut_ptr().expose_provenance().cast_signed().try_into().unwrap_or(0),
        };
    }
    let [first, second, third, fourth, fifth, sixth] = words;
    // SAFETY: the numbers are those of the attacks beside this module. None unmaps memory or replaces what runs, and
    // what the kernel writes goes to bytes that were handed in for it; what else they break is this process alone.
    let result = unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) };
    Errno::result(result)
}

/// Makes a system call and says how it ended: `done`, or the error's name.
pub(crate) fn attempt<const N: usize>(number: libc::c_long, arguments: [Argument<'_>; N]) -> String {
    outcome(call(number, arguments))
}

/// How something ended.
pub(crate) fn outcome<T>(result: Result<T, Errno>) -> String {
    result.map_or_else(|errno| format!("{errno:?}"), |_| "done".to_owned())
}

/// How an operation of the standard library ended.
pub(crate) fn told<T>(result: std::io::Result<T>) -> String {
    outcome(result.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0))))
}

/// getpid(2) by the number and the way of a 32-bit program, which filters of 64-bit numbers do not know.
#[cfg(target_arch = "x86_64")]
pub(crate) fn of_another_architecture() -> i64 {
    let mut number = 20_i64;
    // SAFETY: getpid(2) has no arguments, touches no memory, and int 0x80 keeps every register but this one.
    unsafe { std::arch::asm!("int 0x80", inout("rax") number, options(nostack)) };
    number
}

/// There is none with a way in that this program knows.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn of_another_architecture() -> i64 {
    std::process::abort()
}

/// Ends the process as a bug would, so that the kernel looks for somebody to hand the core to.
pub(crate) fn crash() -> ! {
    // SAFETY: abort(3) ends the process.
    unsafe { libc::abort() }
}
