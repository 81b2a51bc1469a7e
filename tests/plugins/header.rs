//! `mdm_model.h` as an author has it: installed, included by C and by C++, and taken away again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::common::{PATIENCE, within};

/// All that a table needs, in what both languages take: MDM_STR_INIT in statics, MDM_STR as an argument.
const TABLES: &str = r#"
#include <mdm_model.h>
static const mdm_host *host;
static int32_t load(mdm_context *context, mdm_str state, void **instance) {
  (void)context; (void)state; (void)instance;
  host->log(MDM_LOG_INFO, MDM_STR("loaded"));
  return MDM_OK;
}
static int32_t infer(void *instance, mdm_context *context, const mdm_tensor *inputs, uint32_t count) {
  (void)instance;
  (void)count;
  return host->output(context, inputs, NULL, NULL);
}
static const mdm_str greeting = MDM_STR_INIT("hello");
static const mdm_entry entries[] = {{MDM_STR_INIT("model"), NULL, load, infer, NULL}};
static const mdm_plugin plugin = {MDM_ABI_VERSION, sizeof(mdm_plugin), sizeof(mdm_entry), 1, entries};
const mdm_plugin *mdm_plugin_entry(const mdm_host *from) {
  host = from;
  return greeting.length == 5 && entries[0].name.length == 5 ? &plugin : NULL;
}
"#;

fn make(order: &str, prefix: &Path, built: &Path) -> Output {
    let mut command = Command::new("make");
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // Without cargo, what lies in release/ is installed.
        .args(["--no-print-directory", order, "CARGO=no-such-cargo"])
        .arg(format!("PREFIX={}", prefix.display()))
        .arg(format!("CARGO_TARGET_DIR={}", built.display()));
    // A make around the tests is none of this one's business.
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "DESTDIR"] {
        command.env_remove(name);
    }
    let output = command.output().expect("make");
    assert!(output.status.success(), "{output:?}");
    output
}

/// A folder as `make build` leaves it, with programs that are not run.
fn built(dir: &TempDir) -> std::path::PathBuf {
    let release = dir.path().join("built/release");
    fs::create_dir_all(&release).unwrap();
    for name in [
        "mdm-server-start",
        "mdm-server-terminate",
        "mdm-server-status",
        "mdm-infer",
        "mdm-bench",
        "mdm-model",
    ] {
        let file = release.join(name);
        fs::write(&file, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir.path().join("built")
}

#[test]
fn the_installed_header_is_taken_by_c_and_cpp_and_uninstall_leaves_no_folders() {
    within(PATIENCE, || {
        let dir = tempfile::tempdir().unwrap();
        let built = built(&dir);
        let prefix = dir.path().join("opt/mdm");
        make("install", &prefix, &built);
        let include = prefix.join("include");
        for (compiler, standard, file) in [
            ("cc", "-std=c99", "model.c"),
            ("cc", "-std=c11", "model.c"),
            ("c++", "-std=c++11", "model.cpp"),
        ] {
            let source = dir.path().join(file);
            fs::write(&source, TABLES).unwrap();
            let output = Command::new(compiler)
                .args([standard, "-pedantic-errors", "-Wall", "-Wextra", "-Werror"])
                .args(["-shared", "-fPIC", "-I"])
                .arg(&include)
                .arg("-o")
                .arg(dir.path().join("libmodel.so"))
                .arg(&source)
                .output()
                .expect("a compiler");
            assert!(output.status.success(), "{compiler} {standard}: {output:?}");
        }
        make("uninstall", &prefix, &built);
        assert!(!dir.path().join("opt").exists(), "folders are left");
    });
}

/// Folders that were there before, and what others have put into ours, stay.
#[test]
fn uninstall_leaves_what_it_did_not_bring() {
    within(PATIENCE, || {
        let dir = tempfile::tempdir().unwrap();
        let built = built(&dir);
        let prefix = dir.path().join("local");
        fs::create_dir_all(prefix.join("bin")).unwrap();
        make("install", &prefix, &built);
        // A second time over the first forgets nothing of what that made.
        make("install", &prefix, &built);
        fs::write(prefix.join("include/other.h"), "").unwrap();
        make("uninstall", &prefix, &built);
        assert!(prefix.join("bin").is_dir(), "it was there before");
        assert!(prefix.join("include/other.h").is_file());
        assert!(!prefix.join("include/mdm_model.h").exists());
        assert!(!prefix.join("lib").exists(), "it was made by install");
        make("uninstall", &prefix, &built);
    });
}
