//! Results as a file, or as a look at the first rows.
//!
//! ```text
//! .jsonl                 written as they come
//! .npy of numbers        written as they come; the number of rows is put into the header at the end, if it was not known
//! .npy of text, .npz     kept until the end: how long the longest text is, and how many rows there are, stands ahead of them
//! ```

mod destination;
mod jsonl;
mod look;
mod npy;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use mdm::client::{ModelInfo, Response};
use mdm::{Batch, DataType, Stats, Tensor};

use crate::read::{Format, is_standard};
use destination::Destination;
use look::Look;
use npy::NpyRows;

/// Where results go, checked before any work is done.
pub struct Target {
    path: PathBuf,
    format: Format,
}

impl Target {
    /// Checks that the format is one that can be written, that the folder is there, and that the rows are not overwritten.
    pub fn new(path: &Path, format: Option<Format>, input: &Path) -> Result<Target> {
        let format = match format {
            Some(format) => format,
            None if is_standard(path) => bail!(
                "standard output has no name that says its format; give --output-format npy, npz or jsonl"
            ),
            None => Format::of(path)?,
        };
        ensure!(
            format != Format::Txt,
            "{}: results are written as .npy, .npz or .jsonl",
            path.display()
        );
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(folder) = folder {
            ensure!(
                folder.is_dir(),
                "{}: the folder {} does not exist",
                path.display(),
                folder.display()
            );
        }
        ensure!(
            !path.is_dir(),
            "{}: it is a folder, expected a file",
            path.display()
        );
        ensure!(
            !destination::is_same_file(path, input),
            "--output {} is the file that --input reads, which would be overwritten; give another name",
            path.display()
        );
        Ok(Target {
            path: path.to_owned(),
            format,
        })
    }

    /// Whether results go to standard output, where nothing else may then be written.
    pub fn is_standard(&self) -> bool {
        is_standard(&self.path)
    }

    /// Checks that what the model gives can be written there, as far as it says what it gives.
    pub fn check(&self, model: &ModelInfo) -> Result<()> {
        match model.outputs.is_empty() {
            true => Ok(()),
            false => self.check_names(model.outputs.iter().map(|o| o.name.as_str()).collect()),
        }
    }

    fn check_names(&self, names: Vec<&str>) -> Result<()> {
        ensure!(
            self.format != Format::Npy || names.len() == 1,
            "{}: a .npy file holds one output, the model has {names:?}; use .npz",
            self.path.display()
        );
        Ok(())
    }
}

/// What is made of the results.
pub struct Results {
    to: To,
    /// An output of no rows, like which rows that failed are blank.
    like: Option<Batch>,
    /// Rows that failed before anything was known of their outputs.
    missing: usize,
}

enum To {
    /// They are written.
    File(Box<Written>),
    /// They are counted, and the first are shown.
    Look(Look),
}

impl Results {
    /// Makes the file, or leaves the results at a look. The number of rows may be known.
    pub fn begin(target: Option<Target>, rows: Option<u64>) -> Result<Results> {
        let to = match target {
            Some(target) => To::File(Box::new(Written::begin(target, rows)?)),
            None => To::Look(Look::default()),
        };
        Ok(Results {
            to,
            like: None,
            missing: 0,
        })
    }

    /// Takes the next rows.
    pub fn add_rows(&mut self, outputs: Batch) -> Result<()> {
        if self.like.is_none() {
            self.like = Some(outputs.blank_rows(0)?);
            let missing = std::mem::take(&mut self.missing);
            self.add_blank(missing)?;
        }
        self.to.add_rows(outputs)
    }

    /// Takes rows of which none has a result: zeros, empty strings, JSON nulls.
    pub fn add_blank(&mut self, rows: usize) -> Result<()> {
        /// Few enough for any rows' size.
        const AT_ONCE: usize = 64;

        let Some(like) = &self.like else {
            self.missing += rows;
            return Ok(());
        };
        for start in (0..rows).step_by(AT_ONCE) {
            let blank = like.blank_rows(AT_ONCE.min(rows - start))?;
            self.to.add_rows(blank)?;
        }
        Ok(())
    }

    /// Takes the outputs of a model that has no rows.
    pub fn add_whole(&mut self, outputs: Vec<Tensor>) -> Result<()> {
        match &mut self.to {
            To::File(written) => written.add_whole(&outputs),
            To::Look(look) => look.add_whole(&outputs),
        }
    }

    /// Ends the work; returns what a person is told of it.
    pub fn finish(self) -> Result<String> {
        match self.to {
            To::File(written) => written.finish(),
            To::Look(look) => Ok(look.shown()),
        }
    }
}

impl To {
    fn add_rows(&mut self, outputs: Batch) -> Result<()> {
        match self {
            To::File(written) => written.add_rows(outputs),
            To::Look(look) => look.add_rows(&outputs),
        }
    }
}

/// A file of results.
pub struct Written {
    target: Target,
    to: Destination,
    form: Form,
    /// What was written, for a person.
    look: Look,
}

/// How rows become a file.
enum Form {
    Npy(NpyRows),
    Jsonl,
    /// Parts that are written at the end.
    Kept(Vec<Batch>),
    /// Nothing is left to be written.
    Complete,
}

impl Written {
    fn begin(target: Target, rows: Option<u64>) -> Result<Written> {
        let to = Destination::create(&target.path)?;
        let form = match target.format {
            Format::Npy if rows.is_some() || to.can_seek() => Form::Npy(NpyRows::new(rows)),
            Format::Npy | Format::Npz => Form::Kept(Vec::new()),
            Format::Jsonl | Format::Txt => Form::Jsonl,
        };
        Ok(Written {
            target,
            to,
            form,
            look: Look::default(),
        })
    }

    fn add_rows(&mut self, outputs: Batch) -> Result<()> {
        self.target
            .check_names(outputs.tensors.iter().map(Tensor::name).collect())?;
        self.look.count(&outputs);
        if let (Form::Npy(_), [tensor]) = (&self.form, &outputs.tensors[..])
            && tensor.datatype() == DataType::Bytes
        {
            self.form = Form::Kept(Vec::new());
        }
        let path = self.target.path.display();
        let written = match &mut self.form {
            Form::Npy(npy) => npy.add(&mut self.to, &outputs.tensors[0]),
            Form::Jsonl => jsonl::write_rows(&mut self.to, &outputs.tensors),
            Form::Kept(parts) => {
                parts.push(outputs);
                Ok(())
            }
            Form::Complete => Ok(()),
        };
        written.map_err(|e| e.context(path.to_string()))
    }

    fn add_whole(&mut self, outputs: &[Tensor]) -> Result<()> {
        self.target
            .check_names(outputs.iter().map(Tensor::name).collect())?;
        self.look.count_whole(outputs);
        let path = self.target.path.display();
        let written = match self.target.format {
            Format::Npy => npy::write(&mut self.to, &outputs[0]),
            Format::Npz => npy::write_archive(&mut self.to, outputs),
            Format::Jsonl | Format::Txt => jsonl::write_whole(&mut self.to, outputs),
        };
        self.form = Form::Complete;
        written.map_err(|e| e.context(path.to_string()))
    }

    /// The file is whole or not there: it gets its name here.
    fn finish(self) -> Result<String> {
        let Written {
            target,
            mut to,
            form,
            look,
        } = self;
        let path = target.path.display();
        let written = match form {
            Form::Npy(npy) => npy.finish(&mut to),
            Form::Jsonl | Form::Complete => Ok(()),
            Form::Kept(parts) => joined(parts).and_then(|outputs| match target.format {
                Format::Npz => npy::write_archive(&mut to, &outputs),
                _ => npy::write(&mut to, &outputs[0]),
            }),
        };
        written
            .and_then(|()| to.commit())
            .map_err(|e| e.context(path.to_string()))?;
        let name = match target.is_standard() {
            true => "standard output".to_owned(),
            false => path.to_string(),
        };
        Ok(format!("wrote {name}: {}\n", look.described()))
    }
}

/// The outputs with all rows.
fn joined(parts: Vec<Batch>) -> Result<Vec<Tensor>> {
    let response = Response::from_parts(parts, Stats::default())?;
    let names = response.outputs().map(str::to_owned).collect::<Vec<_>>();
    ensure!(!names.is_empty(), "the model gave no outputs");
    let outputs = names.iter().map(|name| response.tensor(name));
    Ok(outputs.collect::<mdm::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::{Contents, Source};
    use std::fs;

    fn arrays(path: &Path) -> Vec<Tensor> {
        match Source::open(path, None).unwrap().all().unwrap() {
            Contents::Inputs(batch) => batch.tensors,
            other => panic!("no arrays: {other:?}"),
        }
    }

    fn write(path: &Path, rows: Option<u64>, parts: &[Batch]) -> Result<String> {
        let target = Target::new(path, None, Path::new("-"))?;
        let mut results = Results::begin(Some(target), rows)?;
        for part in parts {
            results.add_rows(part.clone())?;
        }
        results.finish()
    }

    #[test]
    fn what_was_written_in_parts_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let a = Tensor::from_slice("a", vec![4, 2], &[1u16, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        let b = Tensor::from_strings("b", None, &["x", "äöü", "", "y"]).unwrap();
        let c = Tensor::from_slice("c", vec![4], &[half::f16::from_f32(0.5); 4]).unwrap();
        let all = Batch::from(vec![a.clone(), b.clone(), c.clone()]);
        let parts = [all.slice_rows(0, 1), all.slice_rows(1, 3)];
        let path = folder.path().join("out.npz");
        let told = write(&path, None, &parts).unwrap();
        assert!(told.ends_with("a UINT16 [4, 2], b BYTES [4], c FP16 [4]\n"));
        assert_eq!(arrays(&path), all.tensors);

        let path = folder.path().join("out.npy");
        let e = write(&path, None, &parts).unwrap_err();
        assert!(format!("{e:#}").contains("use .npz"), "{e:#}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        for column in all.tensors {
            for rows in [None, Some(4)] {
                let parts = [column.slice_rows(0, 1), column.slice_rows(1, 3)];
                write(&path, rows, &parts.map(Batch::from)).unwrap();
                assert_eq!(arrays(&path)[0], column.clone().renamed(""));
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        // Rows of another shape than those before.
        let wide = Tensor::from_slice("a", vec![1, 3], &[1u16, 2, 3]).unwrap();
        let parts = [a.clone(), wide].map(Batch::from);
        let e = format!("{:#}", write(&path, None, &parts).unwrap_err());
        assert!(
            e.contains("[2]") && e.contains("[3]") && e.contains(".jsonl"),
            "{e}"
        );
        assert_eq!(arrays(&path).len(), 1);
    }

    #[test]
    fn rows_that_failed_are_blank_wherever_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let y = Tensor::from_slice("y", vec![1, 2], &[1.5f32, 2.5]).unwrap();
        let s = Tensor::from_strings("s", None, &["a"]).unwrap();
        let target = Target::new(&path, None, Path::new("-")).unwrap();
        let mut results = Results::begin(Some(target), None).unwrap();
        results.add_blank(1).unwrap();
        results.add_rows(vec![y, s].into()).unwrap();
        results.add_blank(100).unwrap();
        let told = results.finish().unwrap();
        assert!(told.contains("y FP32 [102, 2], s BYTES [102]"), "{told}");
        let text = fs::read_to_string(path).unwrap();
        let blank = "{\"y\":[0.0,0.0],\"s\":\"\"}\n";
        let row = "{\"y\":[1.5,2.5],\"s\":\"a\"}\n";
        assert_eq!(text, format!("{blank}{row}{}", blank.repeat(100)));
    }

    #[test]
    fn the_input_is_not_overwritten_by_whatever_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("same.npy"), "rows").unwrap();
        std::os::unix::fs::symlink(path("same.npy"), path("link.npy")).unwrap();
        fs::hard_link(path("same.npy"), path("hard.npy")).unwrap();
        fs::create_dir(path("sub")).unwrap();
        let refused = |output: PathBuf| match Target::new(&output, None, &path("same.npy")) {
            Ok(_) => panic!("{} was taken", output.display()),
            Err(e) => assert!(e.to_string().contains("--input"), "{e}"),
        };
        refused(path("same.npy"));
        refused(path("sub/../same.npy"));
        refused(path("link.npy"));
        refused(path("hard.npy"));
        assert!(Target::new(&path("other.npy"), None, &path("same.npy")).is_ok());
    }
}
