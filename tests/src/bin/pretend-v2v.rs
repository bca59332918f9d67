//! The stand-in for virt-v2v-in-place, where tests of other crates find it.

fn main() -> std::process::ExitCode {
    backstay_simulator::virt_v2v::main()
}
