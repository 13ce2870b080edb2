"""Archives of files: zip, tar, 7z and packed files, each file in them described in turn."""
