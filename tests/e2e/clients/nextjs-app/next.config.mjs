export default {
  output: 'standalone',
  // What the server needs is copied below this directory, wherever a lock file lies above it.
  outputFileTracingRoot: import.meta.dirname,
  // No page has an image to be resized.
  outputFileTracingExcludes: { '*': ['node_modules/sharp/**', 'node_modules/@img/**'] },
};
