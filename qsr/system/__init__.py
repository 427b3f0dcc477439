"""What everything stands on: files, the native library, fused passes, processes, the machine."""
