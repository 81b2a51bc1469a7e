//! Build script: has the linker put `handshake.rs` in front of libzmq's own reading of what a peer says of itself.
//!
//! That is possible where libzmq is built with this crate, not where the system's is linked, and with the linkers of Linux.

fn main() {
    println!("cargo::rerun-if-changed=src/bin/shared/link.rs");
    println!("cargo::rustc-check-cfg=cfg(checked_handshakes)");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let own_libzmq = std::env::var_os("DEP_ZMQ_OUT").is_some();
    if own_libzmq
        && is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_POINTER_WIDTH", "64")
        && std::env::var_os("CARGO_FEATURE_SERVER").is_some()
    {
        println!("cargo::rustc-cfg=checked_handshakes");
        println!(
            "cargo::rustc-link-arg-bin=mdm-server-start=-Wl,--wrap=_ZN3zmq11mechanism_t14parse_metadataEPKhmb"
        );
    }
}
