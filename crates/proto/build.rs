//! Compiles the .proto files with a compiler written in Rust, so that a fresh machine needs no
//! `protoc`. The generated code goes to the build directory and is never committed.

use std::error::Error;

const FILES: [&str; 3] = ["proto/peer.proto", "proto/client.proto", "proto/kv.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let stubs = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        // Payloads are slices of the buffer they came in, not copies.
        .bytes(".")
        .build_client(stubs)
        .build_server(stubs)
        // Whoever makes a connection chooses the transport; the messages do not pull one in.
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
