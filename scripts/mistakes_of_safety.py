"""Mistakes for scripts/mutate.py that undo, one at a time, what keeps files whole, nobody waiting and errors plain.

Each is what it undoes, a file of the package, the text there, the text in its place, and the tests that turn red.
"""

READING, WRITING = ("reading",), ("files",)
OPENED = ("house::test_what_others_made_is_opened_in_one_place",)
WRITTEN = ("house::test_files_are_written_in_one_place",)
HUB = ("local_hub::test_a_hub_that_has_files_planted",)
PARTS = ("tokenizer_folders::test_parts_that_no_tokenizer_of_these_families_has",)
MISUSE, COUNTS = ("arguments",), ("sweep::test_counts_that_cannot_be",)
FILES, WORKER = ("bad_input::test_files",), ("worker",)
STDERR = ("streams::test_stderr_that_is_closed_or_full",)

SAFETY: list[tuple[str, str, str, str, tuple[str, ...]]] = [
    # Files that change while they are read, and a Hub that lies.
    ("a file that changes", "checkpoint/hub.py", "if state(path) != self._states[file]:", "if False:", READING),
    ("load looks once", "loading.py", "    find.check_unchanged()\n    return model", "    return model", READING),
    ("verify looks once", "checks/verify.py", "        find.check_unchanged()\n", "        pass\n", READING),
    ("a time that others set", "checkpoint/reading.py", "found.st_ctime_ns)", "0)", READING),
    ("looked for again", "checkpoint/hub.py", "if file not in self._states:", "if True:", READING),
    ("any ETag", "checkpoint/hub.py", ' and re.fullmatch(ETAG, answer.etag or "")', "", HUB),
    ("any commit", "checkpoint/hub.py", 're.fullmatch(COMMIT, answer.commit_hash or "") and ', "", HUB),
    (
        "any commit of no file",
        "checkpoint/hub.py",
        "return error if commit is None or re",
        "return error if True or re",
        HUB,
    ),
    (
        "the Hub is asked again",
        "checkpoint/hub.py",
        "file_download.get_hf_file_metadata = known",
        "pass",
        ("local_hub::test_the_hub_is_asked_once_for_each_file",),
    ),
    # Files that are written.
    ("a file written in its place", "files.py", "yield new", "yield path", WRITING),
    ("a file that is not flushed", "files.py", "os.fsync(file.fileno())", "pass", WRITING),
    ("a file that is copied", "files.py", "new.replace(path)", "path.write_bytes(new.read_bytes())", WRITING),
    ("half a file is left", "files.py", "new.unlink(missing_ok=True)", "pass", WRITING),
    ("a file of another mode", "files.py", "new.chmod(mode & 0o777)", "pass", WRITING),
    ("a file made in the meantime", "files.py", "check_new(path, overwrite)  #", "pass  #", WRITING),
    ("a link that is replaced", "files.py", "if path.is_symlink() or (path", "if (path", WRITING),
    ("a new file that is there", "files.py", 'new.open("xb")', 'new.open("wb")', WRITING),
    (
        "an output written in its place",
        "command/outputs.py",
        "with replacing(path, overwrite=overwrite) as new:\n            new.write_bytes",
        "for new in [path]:\n            new.write_bytes",
        WRITING,
    ),
    (
        "a shard written in its place",
        "corpus/shared_files.py",
        'with replacing(path) as new, new.open("wb") as file:',
        'with path.open("wb") as file:',
        WRITING,
    ),
    ("a figure written in its place", "views/plots.py", "with replacing(path) as new:", "for new in [path]:", WRITTEN),
    (
        "a trace written in its place",
        "command/trace.py",
        "with replacing(request.out, overwrite=request.overwrite) as new:",
        "for new in [request.out]:",
        WRITTEN,
    ),
    (
        "a lock that empties a file",
        "corpus/shared_files.py",
        "        lock.acquire()\n",
        "        os.path.isfile(lock.lock_file) and os.truncate(lock.lock_file, 0)\n        lock.acquire()\n",
        ("sweep::test_what_is_in_the_place_of_a_lock",),
    ),
    # Texts and sums that are others than they were.
    (
        "a text known by its size",
        "corpus/documents.py",
        "if digest.hexdigest() != self.digest:",
        "if False:",
        ("documents::test_a_file_that_changes",),
    ),
    (
        "sums of other texts",
        "corpus/sweep.py",
        ' and torch.equal(found["text"], shard.text)',
        "",
        ("sweep::test_a_shard_whose_sums_are_no_tally",),
    ),
    (
        "sums that were changed",
        "corpus/shared_files.py",
        "if not torch.equal(written, as_tensor(digest(tuple(sorted(found.items()))))):",
        "if False:",
        ("sweep::test_a_number_that_was_changed",),
    ),
    # What is silently another thing.
    ("a tensor that is there twice", "checkpoint/tensors.py", "if short in self._unread:", "if False:", READING),
    ("an index that lies", "checkpoint/tensors.py", "if (name, file) not in stored:", "if False:", READING),
    ("verify and an index that lies", "checks/verify.py", "check_index(", "(lambda *_: None)(", READING),
    ("a length beyond the text", "table.py", "if not 1 <= n <= longest:", "if False:", MISUSE),
    ("a length of 2.7", "table.py", 'each = whole_numbers("lengths", lengths)', "each = [*map(int, lengths)]", MISUSE),
    (
        "inference mode lets an edit write",
        "traces.py",
        "            with torch.inference_mode(False), torch.no_grad():\n",
        "            with torch.no_grad():\n",
        ("run::test_an_edit_that_writes_in_place_is_refused",),
    ),
    (
        "a link to nothing is absent",
        "checkpoint/hub.py",
        "if not os.path.lexists(path):",
        "if not os.path.isfile(path):",
        ("real_checkpoints::test_what_is_no_file_does_not_count_as_absent",),
    ),
    # Workers that begin or end at once.
    (
        "a folder that is looked at late",
        "corpus/sweep.py",
        """        with explained(self.folder, "give another folder"):
            others = [name for name in os.listdir(self.folder) if not _is_of_a_beginning(name)]
        # Looked for after them: another worker that begins just now makes this one first, so it is never missed.
        if (self.folder / "sweep.json").exists():
""",
        """        has_begun = (self.folder / "sweep.json").exists()
        with explained(self.folder, "give another folder"):
            others = [name for name in os.listdir(self.folder) if not _is_of_a_beginning(name)]
        if has_begun:
""",
        ("sweep::test_another_worker_begins_between_two_looks",),
    ),
    (
        "a beginning is another's folder",
        "corpus/sweep.py",
        'return name in ("shards", "sweep.lock") or name.startswith("sweep.json")',
        "return False",
        ("sweep::test_one_of_three_is_killed_while_it_begins",),
    ),
    (
        "two begin without a lock",
        "corpus/shared_files.py",
        "    with locked(path, wait=True):\n        if not path.exists():",
        "    if True:\n        if not path.exists():",
        ("sweep::test_two_sweeps_that_begin_in_one_folder",),
    ),
    (
        "a report that is looked at twice",
        "command/sweeps.py",
        "if there[path] is not None and not overwrite:",
        "if path.exists() and not overwrite:",
        ("corpus_command::test_another_worker_ends_at_the_same_time",),
    ),
    # What is not a regular file, or is larger than it can be.
    ("a device is read", "checkpoint/reading.py", "if not S_ISREG(found.st_mode):", "if False:", READING),
    ("a file that became a pipe", "checkpoint/reading.py", "_check_regular(os.fstat(file), name)", "pass", READING),
    ("a pipe is waited for", "checkpoint/reading.py", 'flags | getattr(os, "O_NONBLOCK", 0)', "flags", READING),
    ("a file that waits for more", "checkpoint/settings.py", "if found is None:", "if False:", READING),
    (
        "a file without an end",
        "checkpoint/reading.py",
        'raise OSError(errno.EINVAL, "it gives',
        'return ("it gives',
        READING,
    ),
    ("a record opened by itself", "study/life.py", ", opened(path) as file:", ', open(path, "rb") as file:', OPENED),
    ("a text of any size", "checkpoint/settings.py", "if len(found) > LONGEST_TEXT:", "if False:", FILES),
    ("a header of any size", "checkpoint/tensors.py", "if length > LONGEST_HEADER:", "if False:", FILES),
    (
        "a corpus without an end",
        "corpus/unpacking.py",
        "if n > most:  # a",
        "if False:  # a",
        ("documents::test_a_file_of_the_systems_own",),
    ),
    (
        "a corpus that is a pipe",
        "corpus/documents.py",
        "self.path.exists() and not self.path.is_file():",
        "False:",
        ("documents::test_a_pipe",),
    ),
    (
        "a model of a pipe in the cache",
        "loading.py",
        "    except CheckpointError:\n        return False",
        "    except KeyError:\n        return False",
        ("hub::test_the_list_of_cached_models_waits_for_nothing",),
    ),
    # Pickles.
    (
        "a tar taken for a pickle",
        "checkpoint/pickled.py",
        "if _is_tar(programs.getvalue()[:512]) or [",
        "if [",
        ("bad_input::test_an_older_pickle_file_that_torch_reads_in_another_way",),
    ),
    (
        "a tar whose headers are followed",
        "checkpoint/pickled.py",
        'tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")',
        "tarfile.open(fileobj=io.BytesIO(start))",
        READING,
    ),
    ("a tensor of any number of axes", "checkpoint/pickled.py", "<= MOST_AXES\n", "\n", READING),
    (
        "a tensor of any size",
        "checkpoint/pickled.py",
        "0 <= n < 2**63 for n in (offset",
        "0 <= n for n in (offset",
        READING,
    ),
    # Tokenizers.
    ("any part of a tokenizer", "checkpoint/tokenizer_files.py", "    check_parts(document, path)\n", "", PARTS),
    ("any type of part", "checkpoint/tokenizer_parts.py", "if kind not in PARTS[name].split():", "if False:", PARTS),
    ("any number of parts", "checkpoint/tokenizer_parts.py", "len(parts) > MOST_PARTS", "False", PARTS),
    ("parts that grow", "checkpoint/tokenizer_parts.py", "prod(map(_growth, parts)) > MOST_GROWTH", "False", PARTS),
    ("texts that grow", "checkpoint/tokenizer_parts.py", "return 1.0 + len(prepend)", "return 1.0", PARTS),
    ("any pattern", "checkpoint/tokenizer_parts.py", 'pattern["Regex"] not in PATTERNS', "False", PARTS),
    ("an empty pattern", "checkpoint/tokenizer_parts.py", 'if "" in found:', "if False:", PARTS),
    ("a long text in a part", "checkpoint/tokenizer_parts.py", "len(text) > LONGEST and text", "False and text", PARTS),
    ("long words", "checkpoint/tokenizer_parts.py", "or longest > LONGEST_WORD:", ":", PARTS),
    ("long entries", "checkpoint/tokenizer_parts.py", "len(text) > LONGEST_ENTRY", "False", PARTS),
    ("merges that lose letters", "checkpoint/tokenizer_parts.py", "and isinstance(prefix, str):", "and False:", PARTS),
    (
        "added tokens of any length",
        "checkpoint/tokenizer_files.py",
        "> 1_000_000:",
        "> 10**9:",
        ("tokenizer_folders::test_special_tokens_that_are_none",),
    ),
    (
        "a text that cannot be spelled",
        "checkpoint/tokenizer.py",
        "    except Exception as error:  # the tokenizers package raises no type of its own\n        raise ValueError",
        "    except KeyError as error:\n        raise ValueError",
        ("tokenizer_folders::test_a_text_that_the_vocabulary_cannot_spell",),
    ),
    # Compressed texts, shards and counts.
    (
        "a text of nothing but lines",
        "corpus/unpacking.py",
        "if n > most and is_packed:",
        "if False:",
        ("documents::test_what_unpacks_to_more_than_a_text_does",),
    ),
    (
        "a shard that unpacks to gigabytes",
        "corpus/shared_files.py",
        "if sum(entry.file_size for entry in entries) > most + HEADERS or any(",
        "if any(",
        ("sweep::test_what_is_in_the_place_of_a_file",),
    ),
    ("counts of no whole numbers", "corpus/sweep.py", "!= (torch.long, torch.uint8, torch.long)", "== ()", COUNTS),
    ("counts below 0", "corpus/sweep.py", "min(shards.min(), total.min()) >= 0 and ", "", COUNTS),
    ("more shards than there can be", "corpus/sweep.py", " and (shards <= most).all())", ")", COUNTS),
    # torchrun's environment.
    ("a world of 0 workers", "corpus/worker.py", "if size < 1:", "if False:", WORKER),
    ("a worker beyond the last", "corpus/worker.py", "if worker.rank >= size:", "if False:", WORKER),
    ("a rank without a world", "corpus/worker.py", 'environment and "WORLD', 'environment or "WORLD', WORKER),
    ("a machine that is not known", "corpus/worker.py", "socket.getaddrinfo(host, port)", "pass", WORKER),
    (
        "a worker that does not answer",
        "corpus/worker.py",
        "if time.monotonic() > end:",
        "if True:\n                return\n            if False:",
        WORKER,
    ),
    # Tracebacks, codes and signs.
    ("a legend in TeX", "views/plots.py", "text.set(**PLAIN)", "pass", ("legends",)),
    ("a legend that is left out", "views/plots.py", 'if name.startswith("_")', "if False", ("legends",)),
    (
        "stdout that is closed",
        "command/main.py",
        "if sys.stdout is None:",
        "if False:",
        ("streams::test_stdout_that_is_closed",),
    ),
    ("stderr that is closed", "command/main.py", "if sys.stderr is None:", "if False:", STDERR),
    (
        "stderr that is full",
        "command/outputs.py",
        "    with suppress(OSError):\n        sys.std",
        "    if True:\n        sys.std",
        STDERR,
    ),
    (
        "help on a full disk",
        "command/main.py",
        "sys.stdout.flush()  # where",
        "pass  # where",
        ("streams::test_what_is_left_in_buffers_changes_no_status",),
    ),
    (
        "what a full disk has not taken",
        "__main__.py",
        "except OSError:  # what",
        "except ZeroDivisionError:  # what",
        ("streams::test_what_is_left_in_buffers_changes_no_status",),
    ),
    (
        "argparse is silent about a full disk",
        "command/main.py",
        "(file or sys.stdout).write(message)",
        "super()._print_message(message, file)",
        ("streams::test_what_is_left_in_buffers_changes_no_status",),
    ),
    (
        "any number of columns",
        "command/outputs.py",
        'if not re.fullmatch("[1-9]',
        'if False and re.fullmatch("[1-9]',
        ("streams::test_any_number_of_columns",),
    ),
    (
        "Ctrl-C while torch is imported",
        "__init__.py",
        "signal.signal(signal.SIGINT, signal.SIG_DFL)  #",
        "pass  #",
        ("streams::test_ctrl_c_while_torch_is_imported",),
    ),
    (
        "numbers of half a byte",
        "checks/tensors.py",
        ' and not dtype.startswith("float4")',
        "",
        ("verify::test_numbers_of_half_a_byte",),
    ),
    (
        "names as they are",
        "command/models.py",
        "return text_label(name), *sizes",
        "return name, *sizes",
        ("command::test_models",),
    ),
    # What a caller of the library gives.
    ("no decoder", "lens.py", "if not isinstance(self.decoder, str) or not", "if not", MISUSE),
    ("no function", "arguments.py", "if not callable(value):", "if False:", MISUSE),
    ("no names", "arguments.py", "if not all(isinstance(each, str) for each in found):", "if False:", MISUSE),
    ("no model", "arguments.py", 'if not hasattr(model, "unembed"):', "if False:", MISUSE),
    ("no block", "edits.py", "if not isinstance(block, BlockTrace):", "if False:", MISUSE),
    ("tokens without numbers", "arguments.py", "        if is_that:", "        if False:", MISUSE),
    ("True is 1", "arguments.py", "if not isinstance(value, bool):", "if True:", MISUSE),
    ("2.0 is 2", "arguments.py", "return index(value)", "return int(value)", MISUSE),
    ("one is no list", "arguments.py", "(found if are_several else [found])", "found", MISUSE),
    # Mapped files.
    ("weights stay in the file", "checkpoint/tensors.py", "copy=not self.mmap", "copy=False", READING),
    (
        "a corpus reads a mapped file",
        "command/corpus.py",
        "device, mmap=False)",
        "device)",
        ("corpus_command::test_weights_that_are_cut_short_while_they_are_in_use",),
    ),
    # Small ones.
    (
        "an empty folder is left",
        "corpus/sweep.py",
        "        make(self.folder)\n",
        '        make(self.folder / "shards")\n',
        ("sweep::test_texts_that_cannot_be_read_leave_the_folder_to_another_run",),
    ),
    (
        "a link to itself beside",
        "command/corpus.py",
        "os.path.realpath(folder) == os.path.realpath(request.out)",
        "folder.resolve() == request.out.resolve()",
        ("corpus_command::test_what_cannot_be_done_is_said_in_one_line",),
    ),
    (
        "an empty document is left",
        "corpus/documents.py",
        "length + len(_without_end(line)) > LONGEST",
        "length + len(line) > LONGEST",
        ("documents::test_a_document_as_long_as_can_be_is_one",),
    ),
    (
        "curves beside are those of the report",
        "command/sweeps.py",
        'drawn("beside.html", "beside.png", [record',
        'drawn("report.html", "curves.png", [record',
        ("corpus_command::test_other_sweeps_beside",),
    ),
    (
        "what a killed writer left",
        "corpus/shared_files.py",
        'path.parent.glob(f"{path.name}.*.*")',
        "()",
        ("sweep::test_what_a_killed_writer_left_is_taken_away",),
    ),
    (
        "values are not told",
        "corpus/shared_files.py",
        'f"{key} ({_shown(theirs[key])}; here {_shown(ours[key])})" for key in other',
        "other",
        ("sweep::test_a_folder_belongs_to_one_sweep",),
    ),
    (
        "NaN is walked through",
        "views/walk.py",
        "if not logits.isfinite().all():",
        "if False:",
        ("walk::test_weights_that_are_not_finite",),
    ),
    ("NaN is a head's score", "instruments/heads.py", "if not found[-1].isfinite().all():", "if False:", ("heads",)),
]
