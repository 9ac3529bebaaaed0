//! All memory is read and checked before the service runs, and nothing is needed of the image later.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use crac_testing::{
    lab::{Lab, Service, free_addr, text},
    programs::program,
    wait_until,
};

/// Checkpoints `service` into `image`, and inspects it.
fn checkpoint(lab: &Lab, service: &mut Service, image: &Path) -> serde_json::Value {
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success(), "{}", service.output());
    serde_json::from_str(&lab.crac_ok(["inspect".as_ref(), "--json".as_ref(), image.as_os_str()])).unwrap()
}

fn restore(lab: &Lab, image: &Path) -> Service {
    let addr = free_addr();
    let mut command = lab.command(program("crac"));
    command.args(["restore", "--eager"]).arg(image).args(["--", "--listen", &addr.to_string()]);
    Service::start(command, addr).answering()
}

fn maps(service: &Service) -> String {
    std::fs::read_to_string(format!("/proc/{}/maps", service.pid())).unwrap()
}

#[test]
fn an_eager_life_has_its_state_and_its_image_is_not_mapped() {
    let lab = Lab::new();
    let mut service = lab.web_server(&["--warm-mib", "64"]);
    service.get("/counter");
    let warm: Vec<_> = (0..64).map(|number| service.get(&format!("/warm/{number}")).body).collect();
    let mut sizes = Vec::new();
    // Each life comes from the image of the one before, the last one lazily.
    for generation in 1..=4 {
        let image = lab.file(&format!("{generation}.crac"));
        let inspected = checkpoint(&lab, &mut service, &image);
        let libraries = inspected["libraries"].to_string();
        assert!(libraries.contains("web-server") && libraries.contains("libc.so"), "{libraries}");
        sizes.push(image.metadata().unwrap().blocks() * 512);
        let name = image.to_str().unwrap();
        if generation == 4 {
            service = lab.restore(&image, &[]);
            assert!(maps(&service).contains(name));
        } else {
            service = restore(&lab, &image);
            // The restorer itself is given back behind the open door.
            wait_until("nothing of the image is mapped", || (!maps(&service).contains(name)).then_some(()));
            std::fs::remove_file(&image).unwrap();
        }
        assert_eq!(service.get("/counter").body.trim(), (generation + 1).to_string());
        assert!((0..64).all(|number| service.get(&format!("/warm/{number}")).body == warm[number]));
        assert_eq!(service.get("/instance").json()["generation"], generation);
    }
    assert!(sizes[3] < sizes[0] + sizes[0] / 2 + (4 << 20), "the image grows with the generations: {sizes:?}");
}

#[test]
fn damaged_page_data_end_an_eager_restore_and_make_an_eager_run_start_cold() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    let image = lab.file("web.crac");
    let inspected = checkpoint(&lab, &mut service, &image);
    let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
    let at = (inspected["data_offset"].as_u64().unwrap() + file.metadata().unwrap().len()) / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    drop(file);
    let output = lab.crac(["restore".as_ref(), "--eager".as_ref(), image.as_os_str()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(21), "{said}");
    assert!(said.contains("page data are damaged: the checksum of bytes "), "{said}");

    let addr = free_addr();
    let mut command = lab.command(program("crac"));
    command.args(["run", "--eager", "--image"]).arg(&image).arg("--").arg(program("web-server"));
    command.args(["--listen", &addr.to_string(), "--warm-mib", "1"]);
    let service = Service::start(command, addr).answering();
    assert_eq!(service.get("/instance").json()["generation"], 0);
    assert!(service.output().contains("WARNING") && service.output().contains("page data"), "{}", service.output());
}

#[test]
fn a_run_becomes_its_image_and_is_restored_as_it_is_told() {
    for option in ["--eager", "--populate"] {
        let lab = Lab::new();
        let image = lab.file("web.crac");
        let run = || {
            let addr = free_addr();
            let mut command = lab.command(program("crac"));
            // The option counts.
            command.env("CRAC_EAGER", "off");
            command.args(["run", option, "--checkpoint-on", "ready", "--image"]).arg(&image).arg("--");
            command.arg(program("web-server")).args(["--listen", &addr.to_string(), "--warm-mib", "1"]);
            Service::start(command, addr)
        };
        for _ in 0..2 {
            let service = run().answering();
            wait_until("a restored life", || {
                let answer = crac_testing::http::exchange(service.addr, "GET", "/instance", "").ok()?;
                (answer.status == 200 && answer.json()["generation"] == 1).then_some(())
            });
            if option == "--eager" {
                wait_until("nothing of the image is mapped", || (!maps(&service).contains("web.crac")).then_some(()));
            } else {
                assert!(maps(&service).contains("web.crac"), "{}", maps(&service));
            }
        }
    }
    let lab = Lab::new();
    for verb in ["run", "restore"] {
        let output = lab.crac([verb, "--eager", "--populate", "--", "true"]);
        assert_eq!(output.status.code(), Some(2), "{verb}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("'--populate'"), "{verb}: {}", text(&output.stderr));
    }
}
